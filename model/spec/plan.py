"""Define the parameters of a request, most of them optional, and the plan that they resolve to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.spec.geometry import Clip, Size

Task = Literal["text_to_video", "image_to_video", "video_continuation", "long_video", "refine"]


class InvalidParams(ValueError):
    """The parameters are not valid: `field` is the field of the request, `rule` the rule that it breaks."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


@dataclass(frozen=True)
class GenerationParams:
    """The parameters that a client may set. None means the default of the checkpoint."""

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
    """The second stage: its size, steps and noise level, and whether it doubles the frame rate."""

    height: int
    width: int
    num_inference_steps: int
    t_thresh: float
    spatial_only: bool
    num_held: int  # first frames that are held to a condition of the request


@dataclass(frozen=True)
class Plan:
    """Resolved parameters. Sides are in pixels.

    Attributes:
        task: the task.
        height: height of the base video; for `refine`, of the given clip.
        width: width, likewise.
        num_frames: frames of a segment; for `refine`, of the given clip.
        num_segments: number of segments.
        num_condition_frames: frames that a segment takes over from the clip or segment that it continues.
        num_inference_steps: steps of a segment.
        guidance_scale: 1 turns guidance off.
        distilled: use the distilled model.
        condition_cache: compute keys and values of condition frames once, instead of at every step.
        enhance_hf: use more steps at low noise in continuations.
        fps: frames a second of the base video.
        refinement: the second stage, if any.
        step_cache: threshold of a `StepCache`; None runs every step in full.
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
        """Return the frames of the base video. Segments overlap by their condition frames."""
        return self.num_frames + (self.num_segments - 1) * (self.num_frames - self.num_condition_frames)

    @property
    def frame_factor(self) -> int:
        """Return the number of output frames for each frame of the base video."""
        return 2 if self.refinement and not self.refinement.spatial_only else 1

    @property
    def repeated_frames(self) -> int:
        """Return how many output frames a segment repeats of the previous one."""
        return self.num_condition_frames * self.frame_factor

    @property
    def output_frames(self) -> int:
        """Return the frames of the finished video."""
        return self.total_frames * self.frame_factor

    @property
    def output_fps(self) -> int:
        """Return the frames a second of the finished video."""
        return self.fps * self.frame_factor

    @property
    def output_size(self) -> Size:
        """Return the size of the finished video."""
        stage = self.refinement or self
        return Size(stage.height, stage.width)

    @property
    def video_taken(self) -> Clip:
        """Return how many of the last frames of a given video are needed, and at which size."""
        num_frames = self.num_frames if self.task == "refine" else self.num_condition_frames
        return Clip(self.height, self.width, num_frames)

    @property
    def condition_video_taken(self) -> Clip:
        """Return how many of the last frames of a condition video are needed, and at which size."""
        assert self.refinement
        return Clip(self.refinement.height, self.refinement.width, self.refinement.num_held)
