"""Define the body of `POST /generate`.

The options of the video come from `model.spec.params`; here are prompts, input files and the options of the
job. Types and constant bounds are checked here; limits of the checkpoint are checked in `model.spec.resolve`.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from jobs.order import Priority
from jobs.record import WebhookEvent
from model.spec.params import GenerationParams, reject_nul
from service.errors import UnusableInput
from service.openapi.rules import SOURCES, any_given
from service.outgoing.connection import parse_url

MAX_VIDEOS = 16
"""How many videos one request can have."""

_INVISIBLE = {"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Mc", "Me"}
_BLANK_SYMBOLS = frozenset(
    "\u115f\u1160\u2800\u3164\uffa0"
)  # Hangul fillers, the Braille pattern without dots


def _reject_blank(text: str) -> str:
    if not any(map(_is_visible, text)):
        raise ValueError("must not be empty")
    return text


def _is_visible(character: str) -> bool:
    """Check that a character shows something by itself: no space, control, format character or mark."""
    return unicodedata.category(character) not in _INVISIBLE and character not in _BLANK_SYMBOLS


def _check_url(url: str) -> str:
    try:
        parse_url(url)
    except UnusableInput as error:
        raise ValueError(str(error)) from error
    return url


Text = Annotated[str, AfterValidator(reject_nul)]
Prompt = Annotated[Text, AfterValidator(_reject_blank)]
MetadataKey = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[Text, StringConstraints(max_length=512)]
WebhookURL = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_check_url)]


ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Strict(BaseModel):
    """A part of a body. Values must have their JSON type; unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class InputFacts(Strict):
    """Facts that a job shows of an input file."""

    media_type: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    source_job_id: str | None = Field(None, description="The job whose video it is, or is from.")
    source_frame: int | None = Field(None, description="The frame of that video, counted from 0.")


class Source(InputFacts):
    """A file, given by its URL (http, https or data), as base64, or by a job.

    With `job`, it is the finished video of that job. With `job_id`, the input of that job under the same name
    is used again. The facts that the job shows of it may stand beside its id, and must be right then.
    """

    model_config = ConfigDict(json_schema_extra=any_given(*SOURCES))

    url: str | None = Field(None, max_length=1 << 26, examples=["https://example.com/cat.png"])
    base64: str | None = None
    job: str | None = Field(
        None,
        max_length=100,
        description="A finished job, whose video is used.",
        examples=["4d3bd841b66e4a4985671dca5e31a593"],
    )
    job_id: str | None = Field(None, max_length=100, description="A job, whose input is used again.")

    @model_validator(mode="after")
    def _check_one_is_given(self) -> Self:
        if [getattr(self, name) for name in SOURCES].count(None) != len(SOURCES) - 1:
            raise ValueError("must have exactly one of url, base64, job and job_id")
        if self.job_id is None and self.facts():
            raise ValueError(f"{', '.join(self.facts())} can be given only with job_id")
        return self

    def facts(self) -> dict[str, object]:
        """Return the facts that were given, by name."""
        return self.model_dump(include=set(InputFacts.model_fields), exclude_none=True)


class ImageSource(Source):
    """An image, given as a `Source`. With `job`, it is a frame of the finished video of that job."""

    frame: int | None = Field(
        None,
        description="With `job`: the frame, counted from 0, or from the end if it is negative. By default "
        "the last.",
    )

    @model_validator(mode="after")
    def _check_frame_has_a_job(self) -> Self:
        if self.frame is not None and self.job is None:
            raise ValueError("frame can be given only with job")
        return self


class JobOptions(Strict):
    """Options of a job that do not change its video. In every body, a field that is null counts as absent."""

    priority: Priority = Field(
        "normal",
        description="`high` jobs start before `normal`, and those before `low`. `high` needs an API key with "
        "that right.",
    )
    deadline_s: float | None = Field(
        None,
        ge=0.001,
        le=30 * 86400,
        description="Seconds from submission until the video is wanted. Among the jobs of one owner, the "
        "earliest deadline that can be met comes first.",
        examples=[300],
    )
    refuse_if_late: bool = Field(
        False,
        description="Refuse the request if the video cannot be expected by its deadline. Otherwise the job "
        "gets a warning.",
    )
    webhook_url: WebhookURL | None = Field(None, description="Notified when the job's status changes.")
    webhook_events: list[WebhookEvent] | None = Field(
        None, min_length=1, max_length=16, description="Events that are sent; all when absent."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="Stored and shown with the job."
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:  # noqa: ANN401 - whatever a client sent
        if not isinstance(values, dict):
            return values
        known = cls.model_fields
        return {name: value for name, value in values.items() if value is not None or name not in known}

    @field_validator("webhook_events")
    @classmethod
    def _check_events_have_a_url(
        cls, events: list[WebhookEvent] | None, info: ValidationInfo
    ) -> list[WebhookEvent] | None:
        if events and not info.data.get("webhook_url"):
            raise ValueError("needs webhook_url")
        return events

    @field_validator("refuse_if_late")
    @classmethod
    def _check_there_is_a_deadline(cls, refuse: bool, info: ValidationInfo) -> bool:
        if refuse and info.data.get("deadline_s") is None:
            raise ValueError("needs deadline_s")
        return refuse


class RequestOptions(GenerationParams, JobOptions):
    """All that a request may say, except its input files. Presets consist of it."""

    prompt: Prompt | None = Field(
        None, description="What the video should show.", examples=["A red ball rolls"]
    )
    prompts: list[Prompt] | None = Field(
        None, min_length=1, description="Instead of `prompt`: one for each segment."
    )
    model: ModelName | None = Field(
        None, description="Name of a model in `GET /capability`; by default the service chooses."
    )
    num_videos: int = Field(
        1,
        ge=1,
        le=MAX_VIDEOS,
        description="Videos to make of this request: one job each, with `seed`, `seed + 1` and so on.",
    )

    @field_validator("num_videos")
    @classmethod
    def _check_one_video_is_predicted(cls, num_videos: int, info: ValidationInfo) -> int:
        if num_videos > 1 and info.data.get("refuse_if_late"):
            raise ValueError("must be 1 with refuse_if_late")
        return num_videos


class GenerateRequest(RequestOptions):
    """A video to generate. Options that are absent have the checkpoint's defaults."""

    image: ImageSource | None = Field(None, description="The first frame.")
    video: Source | None = Field(None, description="The clip to continue or to refine.")
    condition_video: Source | None = Field(
        None, description="For `refine`: the clip that the start of the refined video must match."
    )
    fps: int | None = Field(
        None, description="Shown with a job; it depends on the model and must be right if it is given."
    )
    refinement: dict[str, Any] | None = Field(
        None,
        description="Shown with a job; it follows from the other options and must be right if it is given.",
    )

    def all_prompts(self) -> tuple[str, ...]:
        """Return the prompt, or one for each segment."""
        return tuple(self.prompts or ()) if self.prompt is None else (self.prompt,)
