"""Define the plan of a video: every option resolved, nothing left open."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, pairwise

from pydantic import BaseModel, ConfigDict, Field

from model.spec.geometry import Clip, RefineLayout, Size, refine_layout
from model.spec.params import Task

DISTILLED_LORA, REFINEMENT_LORA = "cfg_step_lora", "refinement_lora"
"""The names of the LoRA files in a checkpoint."""


class Refinement(BaseModel):
    """The second stage. Sides are in pixels."""

    model_config = ConfigDict(frozen=True)

    height: int
    width: int
    num_inference_steps: int
    t_thresh: float = Field(description="Noise level at which refinement begins.")
    spatial_only: bool = Field(description="Keep the frame rate instead of doubling it.")
    num_held: int = Field(description="First frames that are held to a condition of the request.")


class Plan(BaseModel):
    """The values that the pipeline needs. Sides are in pixels.

    Plans are stored with jobs, and other releases read them: unknown fields are ignored, and a new field must
    have a default.
    """

    model_config = ConfigDict(frozen=True)

    task: Task
    height: int = Field(description="Height of the base video; for `refine`, of the given clip.")
    width: int = Field(description="Width of the base video; for `refine`, of the given clip.")
    num_frames: int = Field(description="Frames of a segment; for `refine`, of the given clip.")
    num_segments: int
    num_condition_frames: int = Field(
        description="Frames that a segment takes over from the clip or the segment that it continues."
    )
    num_inference_steps: int = Field(description="Steps of a segment.")
    guidance_scale: float = Field(description="1 means no guidance.")
    distilled: bool
    condition_cache: bool
    enhance_hf: bool
    fps: int = Field(description="Frames a second of the video before it is refined.")
    refinement: Refinement | None = Field(None, description="The second stage, if there is one.")
    step_cache: float | None = Field(
        None, description="Threshold of a `StepCache`; null computes every step in full."
    )

    @property
    def stage_loras(self) -> tuple[str | None, ...]:
        """Return the LoRA of each stage of a segment, in their order; None for a stage with the base."""
        base = (DISTILLED_LORA if self.distilled else None,) if self.task != "refine" else ()
        return (*base, REFINEMENT_LORA) if self.refinement else base

    @property
    def loras(self) -> tuple[str, ...]:
        """Return the LoRAs that the plan needs."""
        return tuple(name for name in self.stage_loras if name is not None)

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


def count_lora_changes(plans: Iterable[Plan]) -> int:
    """Return how often another LoRA is merged while these plans run one after the other, from the base on."""
    stages = chain.from_iterable(plan.stage_loras * plan.num_segments for plan in plans)
    return sum(before != after for before, after in pairwise(chain([None], stages)))


def refine_layout_of(plan: Plan, segment: int) -> RefineLayout:
    """Return the layout of the frames of a segment's refinement.

    The first segment keeps the condition frames of the request, if any, later ones the end of the previous
    segment.
    """
    assert plan.refinement
    num_held = plan.repeated_frames if segment else plan.refinement.num_held
    return refine_layout(plan.num_frames * plan.frame_factor, num_held)
