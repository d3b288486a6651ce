"""The body of `POST /generate`, field by field.

What a field's value may be beyond its type depends on the checkpoint, and is settled in
`service.jobs.orders`.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from jobs.order import Priority, Quality, Task
from jobs.record import WebhookEvent
from service.errors import UnusableInput
from service.inputs.fetch import parse_url

MAX_SEED = (1 << 63) - 1
_MAX_COUNT = 1_000_000  # far above every limit of a checkpoint


def _legible(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the character NUL")
    return text


def _spoken(text: str) -> str:
    if not text.strip():
        raise ValueError("must say something")
    return text


def _web_address(url: str) -> str:
    try:
        parse_url(url)
    except UnusableInput as error:
        raise ValueError(str(error)) from error
    return url


Text = Annotated[str, AfterValidator(_legible)]
Prompt = Annotated[Text, AfterValidator(_spoken)]
Count = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
MetadataKey = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[Text, StringConstraints(max_length=512)]
WebhookURL = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_web_address)]


class Strict(BaseModel):
    """A part of a body: types as they are in JSON, and no fields but its own."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Source(Strict):
    """A file: by its URL (http, https or data), or as base64."""

    url: str | None = Field(None, max_length=1 << 26, examples=["https://example.com/cat.png"])
    base64: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.url is None) == (self.base64 is None):
            raise ValueError("must have either url or base64")
        return self


class Choices(Strict):
    """What may be chosen for every new video, on whichever route it is ordered."""

    negative_prompt: Text | None = Field(
        None, description="What is not to be seen; the empty text is a choice, too. Only with guidance."
    )
    num_inference_steps: Count | None = Field(None, description="Denoising steps of each stage.")
    guidance_scale: float | None = Field(None, description="How closely to follow the prompt; 1 is off.")
    distilled: bool = Field(False, description="Few steps, no guidance.")
    quality: Quality = Field(
        "exact",
        description="Balanced: sooner, with some steps computed in part. Only with guidance, and only "
        "where the service allows it.",
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Drawn when absent.")
    priority: Priority = Field(
        "normal", description="High before normal before low; high needs an API key with that right."
    )
    webhook_url: WebhookURL | None = Field(None, description="Told when the job's state changes.")
    webhook_events: list[WebhookEvent] | None = Field(
        None, min_length=1, max_length=16, description="Which changes it is told; all when absent."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="Kept with the job, shown with it."
    )

    @model_validator(mode="after")
    def _events_have_somewhere_to_go(self) -> Self:
        if self.webhook_events and not self.webhook_url:
            raise ValueError("webhook_events: there is no webhook_url")
        return self


class GenerateRequest(Choices):
    """A video to be generated. What is left out is settled by the checkpoint's defaults."""

    task: Task | None = Field(None, description="Inferred from the inputs when absent.")
    prompt: Prompt | None = Field(None, description="What is to be seen.", examples=["A red ball rolls"])
    prompts: list[Prompt] | None = Field(
        None, min_length=1, description="Instead of `prompt`: one for each segment."
    )
    image: Source | None = Field(None, description="The first frame.")
    video: Source | None = Field(None, description="The clip to continue or to refine.")
    condition_video: Source | None = Field(None, description="For refine: what the clip's start is held to.")
    resolution: str | None = Field(None, description="A table of sizes.", examples=["480p"])
    height: Count | None = Field(None, description="Pixels; with `width`.")
    width: Count | None = Field(None, description="Pixels; with `height`.")
    num_frames: Count | None = Field(None, description="Frames of a segment: 4k + 1.")
    num_segments: Count | None = Field(None, description="More than one: a long video.")
    num_condition_frames: Count | None = Field(
        None, description="Frames that each segment takes over from what comes before it: 4k + 1."
    )
    refine: bool = Field(False, description="Refine to 720p after generation.")
    t_thresh: float | None = Field(None, description="The noise level from which refinement begins.")
    spatial_refine_only: bool = Field(False, description="Refine without doubling the frame rate.")
    condition_cache: bool = Field(True, description="Compute the condition frames once, not in each step.")
    enhance_hf: bool = Field(True, description="Spend more steps on fine detail.")
