"""A wish, which leaves most things open, and a plan, which leaves none. No torch.

`model.shapes.settle` makes the one of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.spec.geometry import Clip, Size

Task = Literal["text_to_video", "image_to_video", "video_continuation", "long_video", "refine"]


class Illegal(ValueError):
    """A wish that cannot be fulfilled: `field` is the request's, `rule` says what would be legal."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


@dataclass(frozen=True)
class Wish:
    """What somebody asks for; None is "as the checkpoint does by default"."""

    task: Task | None = None
    num_prompts: int = 1
    image: Size | None = None
    video: Clip | None = None
    condition_video: Clip | None = None
    resolution: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_segments: int | None = None
    num_condition_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    distilled: bool = False
    refine: bool = False
    t_thresh: float | None = None
    spatial_refine_only: bool = False
    condition_cache: bool = True
    enhance_hf: bool = True
    step_cache: float | None = None


@dataclass(frozen=True)
class Refinement:
    """The second stage: to which size, from which noise level, with doubled frames or not."""

    height: int
    width: int
    num_inference_steps: int
    t_thresh: float
    spatial_only: bool
    num_held: int  # frames of the clip's start that are held to a condition given with the request


@dataclass(frozen=True)
class Plan:
    """A wish with everything settled. Frames and sides in pixels, `fps` of the base video.

    `num_condition_frames` come from the clip (continuation) and from each segment's predecessor.
    For `refine`, `height`, `width` and `num_frames` are the given clip's. `step_cache` is how much of its
    first block's work a step may change and still be computed in part (`model.step_cache`); None is never.
    """

    task: Task
    height: int
    width: int
    num_frames: int
    num_segments: int
    num_condition_frames: int
    num_inference_steps: int
    guidance_scale: float
    distilled: bool
    condition_cache: bool
    enhance_hf: bool
    fps: int
    refinement: Refinement | None
    step_cache: float | None = None

    @property
    def total_frames(self) -> int:
        """Frames of the base video: segments overlap by their condition frames."""
        return self.num_frames + (self.num_segments - 1) * (self.num_frames - self.num_condition_frames)

    @property
    def frame_factor(self) -> int:
        """Frames that come out for each frame of the base video."""
        return 2 if self.refinement and not self.refinement.spatial_only else 1

    @property
    def repeated_frames(self) -> int:
        """Frames, as they come out, with which each segment repeats the end of the one before."""
        return self.num_condition_frames * self.frame_factor

    @property
    def output_frames(self) -> int:
        """Frames of the finished video."""
        return self.total_frames * self.frame_factor

    @property
    def output_fps(self) -> int:
        """Frames a second of the finished video."""
        return self.fps * self.frame_factor

    @property
    def output_size(self) -> Size:
        """Size of the finished video."""
        stage = self.refinement or self
        return Size(stage.height, stage.width)
