"""Define the bodies of OpenAI's videos API, and translate them to bodies of `POST /generate`.

A `model` of OpenAI's own (`sora-…`) leaves the choice of the model to the service. A `size` is used as it is
if the checkpoint can generate it. The four sizes of OpenAI's own API are always accepted: if the checkpoint
cannot generate one, the size of the nearest ratio in the largest table is used. `service.openai.lengths`
converts `seconds`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, BinaryIO

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    WithJsonSchema,
)

from jobs.errors import InvalidRequest
from model.spec.errors import InvalidParams
from model.spec.geometry import Size
from model.spec.limits import Limits
from model.spec.params import GenerationParams, SamplingParams
from model.spec.resolve import Inputs, resolve
from service.errors import invalid
from service.inputs.body import Body
from service.inputs.form import FormFields
from service.jobs.bodies import JobOptions, ModelName, Prompt, Strict
from service.openai.lengths import SECONDS, Length, length_of, length_of_extension, parse_seconds

_OPENAI_SIZES = {"720x1280", "1280x720", "1024x1792", "1792x1024"}
_SIZE = re.compile(r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")
_OPENAI_MODEL = re.compile("sora-")  # its clients send such a name by default
_OPENAI_FIELDS = {  # field of `POST /generate`: the field of OpenAI's API that determines it
    "image": "input_reference",
    "height": "size",
    "width": "size",
    "num_frames": "seconds",
    "num_segments": "seconds",
    "num_condition_frames": "video",
}


def _to_text(seconds: object) -> object:
    """Return a number as a text, which is what OpenAI's clients send."""
    return str(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else seconds


def _check_seconds(seconds: str) -> str:
    parse_seconds(seconds)
    return seconds


def _check_size_text(size: str) -> str:
    if not _SIZE.fullmatch(size):
        raise ValueError("must be width x height in pixels, as in 1280x720")
    return size


def _reject_file_id(file_id: str) -> str:
    raise ValueError("uploaded files are not supported: send the file itself, or an image_url")


Seconds = Annotated[
    str,
    BeforeValidator(_to_text),
    AfterValidator(_check_seconds),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": SECONDS.pattern}, {"type": "number", "exclusiveMinimum": 0}]}
    ),
]


SizeText = Annotated[
    str, AfterValidator(_check_size_text), WithJsonSchema({"type": "string", "pattern": _SIZE.pattern})
]


class ImageReference(Strict):
    """The first frame, given by its URL."""

    file_id: Annotated[str, AfterValidator(_reject_file_id)] | None = Field(
        None, description="Not supported."
    )
    image_url: str = Field(description="An http, https or data URL.", max_length=1 << 26)


class VideoReference(Strict):
    """A finished video."""

    id: str = Field(max_length=100)


class VideoRequest(SamplingParams, JobOptions):
    """A video to generate: the fields of OpenAI's API, and options that only this service has."""

    prompt: Prompt = Field(description="What the video should show.", examples=["A red ball rolls"])
    input_reference: ImageReference | None = Field(None, description="The first frame.")
    model: ModelName | None = Field(
        None, description="Name of a model in `GET /capability`. OpenAI's own names leave the choice to us."
    )
    seconds: Seconds | None = Field(
        None, description="Rounded to the nearest possible length.", examples=["4"]
    )
    size: SizeText | None = Field(None, description="Width × height in pixels.", examples=["1280x720"])


class ExtensionRequest(SamplingParams, JobOptions):
    """A video that continues another one."""

    prompt: Prompt = Field(
        description="What the continuation should show.", examples=["The ball comes to rest"]
    )
    seconds: Seconds = Field(description="Length of the continuation.", examples=["4"])
    video: VideoReference | None = Field(
        None, description="The video to continue: a finished one, or a file."
    )
    model: ModelName | None = Field(None, description="Name of a model, as for a new video.")


CREATE_FORM = FormFields.of(VideoRequest, {"input_reference"})
EXTEND_FORM = FormFields.of(ExtensionRequest, {"video"})


def read_request(body: Body) -> VideoRequest:
    """Check a body that creates a video. Raise InvalidRequest if it is not valid."""
    with _check_body(body, "input_reference"):
        return VideoRequest.model_validate(body.values)


def read_extension(body: Body) -> ExtensionRequest:
    """Check a body that extends a video. Raise InvalidRequest if it is not valid."""
    with _check_body(body, "video"):
        request = ExtensionRequest.model_validate(body.values)
    if request.video is None and "video" not in body.files:
        raise InvalidRequest("video: is required", "video")
    return request


def new_video(request: VideoRequest, body: Body, limits: Limits) -> Body:
    """Return the body of `POST /generate`. Raise InvalidRequest for an impossible length or size."""
    values = _options(request)
    if request.input_reference:
        values["image"] = {"url": request.input_reference.image_url}
    if request.size:
        values |= _size(request.size, limits)._asdict()
    if request.seconds:
        values |= _length(request.seconds, limits, length_of)
    files = {"image": body.files["input_reference"]} if body.files else {}
    return Body(values, files)


def longer_video(request: ExtensionRequest, clip: BinaryIO, size: Size | None, limits: Limits) -> Body:
    """Return a body of `POST /generate` that continues the clip, in its `size` if that is possible.

    Raises InvalidRequest for an impossible length.
    """
    values = _options(request)
    values |= _length(request.seconds, limits, length_of_extension)
    if size and _is_possible(size, limits):
        values |= size._asdict()
    return Body(values, {"video": clip})


def _options(request: VideoRequest | ExtensionRequest) -> dict[str, Any]:
    """Return the fields that `POST /generate` has, too."""
    shared = {"prompt", "model", *SamplingParams.model_fields, *JobOptions.model_fields}
    options = request.model_dump(include=shared, exclude_unset=True)
    if _OPENAI_MODEL.match(options.get("model") or ""):
        del options["model"]
    return options


@contextmanager
def in_their_words() -> Iterator[None]:
    """Replace the field that an InvalidRequest names by the one of OpenAI's API."""
    try:
        yield
    except InvalidRequest as error:
        field, _, part = (error.field or "").partition(".")
        if (openai_field := _OPENAI_FIELDS.get(field)) is None:
            raise
        message = error.message.removeprefix(f"{field}.{part}" if part else field)
        raise type(error)(f"{openai_field}{message}", openai_field) from error


@contextmanager
def _check_body(body: Body, field: str) -> Iterator[None]:
    """Raise InvalidRequest if `field` is given twice, or for a ValidationError of the block."""
    if field in body.files and field in body.values:
        raise InvalidRequest(f"{field}: is given twice", field)
    try:
        yield
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from error


def _size(text: str, limits: Limits) -> Size:
    width, height = map(int, text.split("x"))
    try:
        plan = resolve(GenerationParams(height=height, width=width), Inputs(), limits)
    except InvalidParams as error:
        if text not in _OPENAI_SIZES:
            possible = (f"{size.width}x{size.height}" for size in limits.sizes)
            rule = f"must be one of {', '.join(possible)}" if limits.only_buckets else str(error)
            raise InvalidRequest(f"size: {rule}", "size") from error
        largest = list(limits.buckets)[-1]
        plan = resolve(GenerationParams(resolution=largest), Inputs(image=Size(height, width)), limits)
    return Size(plan.height, plan.width)


def _is_possible(size: Size, limits: Limits) -> bool:
    try:
        resolve(GenerationParams(height=size.height, width=size.width), Inputs(), limits)
    except InvalidParams:
        return False
    return True


def _length(seconds: str, limits: Limits, mapping: Callable[[float, Limits], Length]) -> dict[str, int]:
    try:
        return mapping(parse_seconds(seconds), limits)._asdict()
    except ValueError as error:
        raise InvalidRequest(f"seconds: {error}", "seconds") from error
