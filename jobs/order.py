"""What is to be generated: an order in which nothing is left open.

The service makes it at submission (seed, size and steps are settled there); the worker obeys it. It is
stored as JSON in the job's record and never changes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Task = Literal["text_to_video", "image_to_video", "video_continuation", "long_video", "refine"]
Priority = Literal["high", "normal", "low"]
Quality = Literal["exact", "balanced"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputFile(_Frozen):
    """An image or a clip that the service checked and put into storage under `key`."""

    key: str
    media_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    num_frames: int = 1


class Refinement(_Frozen):
    """The second stage; see `model.spec.plan.Refinement`, which this mirrors. Sides in pixels."""

    height: int
    width: int
    num_inference_steps: int
    t_thresh: float
    spatial_only: bool
    num_held: int


class Order(_Frozen):
    """One job, with everything settled; mirrors `model.spec.plan.Plan`, with texts, seed and inputs.

    `negative_prompt` is None where there is no guidance pass.
    """

    task: Task
    prompts: tuple[str, ...] = Field(min_length=1)
    negative_prompt: str | None = None
    image: InputFile | None = None
    video: InputFile | None = None
    condition_video: InputFile | None = None
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
    refinement: Refinement | None = None
    step_cache: float | None = None
    seed: int

    @property
    def quality(self) -> Quality:
        """Balanced where steps may be computed in part."""
        return "exact" if self.step_cache is None else "balanced"

    @property
    def inputs(self) -> tuple[InputFile, ...]:
        """The files that the worker has to fetch."""
        return tuple(file for file in (self.image, self.video, self.condition_video) if file)
