"""Declare every option of a request once: name, type, default, bounds and description.

The body of `POST /generate`, the body of OpenAI's API and the options of both command lines derive from these
classes. `model.spec.resolve` turns them into a `Plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from model.spec.errors import InvalidParams

Task = Literal["text_to_video", "image_to_video", "video_continuation", "long_video", "refine"]
Quality = Literal["exact", "balanced"]

MAX_SEED = (1 << 63) - 1
MAX_COUNT = 1_000_000  # far above the limits of any checkpoint


def reject_nul(text: str | None) -> str | None:
    """Return the text. Raise ValueError if it contains the character NUL."""
    if text and "\0" in text:
        raise ValueError("must not contain the character NUL")
    return text


class SamplingParams(BaseModel):
    """Options of every new video, whatever its size and inputs. None means the checkpoint's default."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    negative_prompt: Annotated[str | None, AfterValidator(reject_nul)] = Field(
        None,
        description="What the video should not show. The default is the checkpoint's; the empty text is "
        "valid, too. Only with guidance.",
    )
    num_inference_steps: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Denoising steps of each stage."
    )
    guidance_scale: float | None = Field(
        None, description="How closely to follow the prompt; 1 turns guidance off."
    )
    distilled: bool = Field(False, description="Use few steps and no guidance, with cfg_step_lora.")
    quality: Quality = Field(
        "exact",
        description="`balanced` is faster: it computes some steps only in part. Only with guidance, and "
        "only where the service allows it.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Seed of all random numbers. When absent, the service draws one; the model's command "
        "line uses 0.",
    )

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Check options by name. Raise InvalidParams for the first one that is not valid."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidParams(".".join(map(str, first["loc"])), first["msg"]) from error


class GenerationParams(SamplingParams):
    """All options that a client may set, except prompts and input files."""

    task: Task | None = Field(None, description="Inferred from the inputs when absent.")
    resolution: str | None = Field(
        None,
        description="Name of a table of sizes. The size nearest to the input's shape is used.",
        examples=["480p"],
    )
    height: int | None = Field(None, ge=1, le=MAX_COUNT, description="In pixels; with `width`.")
    width: int | None = Field(None, ge=1, le=MAX_COUNT, description="In pixels; with `height`.")
    num_frames: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Frames of a segment: one more than a multiple of 4."
    )
    num_segments: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="More than one segment makes a long video."
    )
    num_condition_frames: int | None = Field(
        None,
        ge=0,
        le=MAX_COUNT,
        description="Frames that each segment takes over from the video that it continues: one more than a "
        "multiple of 4, or 0 if there is no such video.",
    )
    refine: bool = Field(False, description="Refine the generated video to 720p.")
    t_thresh: float | None = Field(None, description="Noise level at which refinement begins.")
    spatial_refine_only: bool = Field(False, description="Refine without doubling the frame rate.")
    condition_cache: bool = Field(
        True, description="Compute the condition frames once instead of in every step."
    )
    enhance_hf: bool = Field(True, description="Spend more steps on fine detail in continuations.")


def value_type(annotation: object) -> object:
    """Return the type of a value that is given: X for `X | None` and for `Annotated[X, …]`."""
    if get_origin(annotation) is Annotated:
        return value_type(get_args(annotation)[0])
    if NoneType in get_args(annotation):
        (given,) = (kind for kind in get_args(annotation) if kind is not NoneType)
        return value_type(given)
    return annotation
