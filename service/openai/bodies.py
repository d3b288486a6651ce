"""What OpenAI's clients send, and which request of ours it means. Called by `service.openai.routes`.

`size` is taken as it is where the checkpoint can make it. The four sizes of OpenAI's own API are always
taken: where the checkpoint cannot make one, it means the size of the nearest ratio in the largest table.
`seconds` is mapped by `service.jobs.extensions`. In a form, a part of an object is a field such as
`video[id]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, BinaryIO

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)

from jobs.errors import InvalidRequest
from model.spec.shapes import GenerationParams, InvalidParams, Limits, Size, resolve
from service.errors import invalid
from service.inputs.body import Body, FormFields
from service.jobs.bodies import Choices, Prompt, Strict
from service.jobs.extensions import SECONDS, Length, length_of, length_of_extension, parse_seconds

CREATE_FORM = FormFields(
    files=frozenset({"input_reference"}),
    texts=frozenset(
        {
            *("prompt", "model", "size", "seconds", "negative_prompt", "quality", "priority", "webhook_url"),
            *("input_reference[image_url]", "input_reference[file_id]"),
        }
    ),
)
EXTEND_FORM = FormFields(
    files=frozenset({"video"}),
    texts=frozenset(
        {"prompt", "model", "seconds", "video[id]", "negative_prompt", "quality", "priority", "webhook_url"}
    ),
)

_OPENAI_SIZES = {"720x1280", "1280x720", "1024x1792", "1792x1024"}
_PART = re.compile(r"(\w+)\[(\w+)\]")
_OUR_FIELDS = {  # which field of theirs an error in a field of ours is about
    "image": "input_reference",
    "height": "size",
    "width": "size",
    "num_frames": "seconds",
    "num_segments": "seconds",
    "num_condition_frames": "video",
}


def _written(seconds: object) -> object:
    """A number, where somebody sends one, as the text that clients of OpenAI send."""
    return str(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else seconds


def _legible(seconds: str) -> str:
    parse_seconds(seconds)
    return seconds


def _no_files(file_id: str) -> str:
    raise ValueError("there are no uploaded files to name: send the file itself, or an image_url")


Seconds = Annotated[
    str,
    BeforeValidator(_written),
    AfterValidator(_legible),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": SECONDS.pattern}, {"type": "number", "exclusiveMinimum": 0}]}
    ),
]
Model = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ImageReference(Strict):
    """The first frame, by its URL."""

    file_id: Annotated[str, AfterValidator(_no_files)] | None = Field(None, description="Not supported.")
    image_url: str = Field(description="An http, https or data URL.", max_length=1 << 26)


class VideoReference(Strict):
    """A video that is finished."""

    id: str = Field(max_length=100)


class VideoRequest(Choices):
    """A video to be generated, as OpenAI's API has it, with choices that only this service has."""

    prompt: Prompt = Field(description="What is to be seen.", examples=["A red ball rolls"])
    input_reference: ImageReference | None = Field(None, description="The first frame.")
    model: Model | None = Field(None, description="Any name: the answer has that of what is really used.")
    seconds: Seconds | None = Field(
        None, description="Brought to the nearest length that can be made.", examples=["4"]
    )
    size: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")] | None = Field(
        None, description="Width × height in pixels.", examples=["1280x720"]
    )


class ExtensionRequest(Choices):
    """A video that goes on where another ends."""

    prompt: Prompt = Field(description="What is to be seen next.", examples=["The ball comes to rest"])
    seconds: Seconds = Field(description="How long it goes on.", examples=["4"])
    video: VideoReference | None = Field(None, description="What goes on: a finished video, or a file.")
    model: Model | None = Field(None, description="As in a new video.")


def read_request(body: Body) -> VideoRequest:
    """What was sent to create a video. Raises InvalidRequest."""
    with _told_apart(body, "input_reference"):
        return VideoRequest.model_validate(_nested(body.values))


def read_extension(body: Body) -> ExtensionRequest:
    """What was sent to extend a video. Raises InvalidRequest."""
    with _told_apart(body, "video"):
        request = ExtensionRequest.model_validate(_nested(body.values))
    if request.video is None and "video" not in body.files:
        raise InvalidRequest("video: is required", "video")
    return request


def new_video(request: VideoRequest, body: Body, limits: Limits) -> Body:
    """The same as a body of `/generate`. Raises InvalidRequest."""
    given = _chosen(request)
    if request.input_reference:
        given["image"] = {"url": request.input_reference.image_url}
    if request.size:
        given |= _size(request.size, limits)._asdict()
    if request.seconds:
        given |= _length(request.seconds, limits, length_of)
    files = {"image": body.files["input_reference"]} if body.files else {}
    return Body(given, files)


def longer_video(request: ExtensionRequest, clip: BinaryIO, size: Size | None, limits: Limits) -> Body:
    """The same as a body of `/generate` that goes on with the clip, in its `size` if that can be made.

    Raises InvalidRequest.
    """
    given = _chosen(request)
    given |= _length(request.seconds, limits, length_of_extension)
    if size and _can_make(size, limits):
        given |= size._asdict()
    return Body(given, {"video": clip})


def _chosen(request: VideoRequest | ExtensionRequest) -> dict[str, Any]:
    return request.model_dump(include={"prompt", *Choices.model_fields}, exclude_unset=True)


@contextmanager
def in_their_words() -> Iterator[None]:
    """Errors in a request of ours name the field that the client knows."""
    try:
        yield
    except InvalidRequest as error:
        ours, _, rest = (error.field or "").partition(".")
        if (theirs := _OUR_FIELDS.get(ours)) is None:
            raise
        message = error.message.removeprefix(f"{ours}.{rest}" if rest else ours)
        raise type(error)(f"{theirs}{message}", theirs) from error


@contextmanager
def _told_apart(body: Body, field: str) -> Iterator[None]:
    if field in body.files and any(name.partition("[")[0] == field for name in body.values):
        raise InvalidRequest(f"{field}: is given twice", field)
    try:
        yield
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from error


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a form calls `video[id]`, as the object that JSON has."""
    nested = {name: value for name, value in values.items() if not _PART.fullmatch(name)}
    for name, value in values.items():
        if part := _PART.fullmatch(name):
            whole = nested.setdefault(part[1], {})
            if not isinstance(whole, dict):
                raise InvalidRequest(f"{part[1]}: is given twice", part[1])
            whole[part[2]] = value
    return nested


def _size(text: str, limits: Limits) -> Size:
    width, height = map(int, text.split("x"))
    try:
        plan = resolve(GenerationParams(height=height, width=width), limits)
    except InvalidParams as error:
        if text not in _OPENAI_SIZES:
            raise InvalidRequest(f"size: {error}", "size") from error
        largest = list(limits.buckets)[-1]
        plan = resolve(GenerationParams(image=Size(height, width), resolution=largest), limits)
    return Size(plan.height, plan.width)


def _can_make(size: Size, limits: Limits) -> bool:
    try:
        resolve(GenerationParams(height=size.height, width=size.width), limits)
    except InvalidParams:
        return False
    return True


def _length(seconds: str, limits: Limits, mapping: Callable[[float, Limits], Length]) -> dict[str, int]:
    try:
        return mapping(parse_seconds(seconds), limits)._asdict()
    except ValueError as error:
        raise InvalidRequest(f"seconds: {error}", "seconds") from error
