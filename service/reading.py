"""Reading the body of a request that creates something: JSON, or a form with the same fields and files.

A dependency of routes. It bounds what is read while it is read, and brings both kinds to the same values;
what the values mean is said by `service.bodies`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from fastapi import Request
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from jobs.errors import InvalidRequest
from service.errors import BodyTooLarge, MalformedBody, UnsupportedMediaType
from service.settings import Settings

FILES = frozenset({"image", "video", "condition_video"})
TEXTS = frozenset({"task", "prompt", "negative_prompt", "resolution", "quality", "priority", "webhook_url"})
REPEATED = frozenset({"prompts"})
_MAX_FIELDS = 1000
_SHOWN_CHARACTERS = 100  # of a name that is the client's


@dataclass(frozen=True)
class FormFields:
    """Which fields of a form are files, texts as they stand, or repeated; the others are written as JSON."""

    files: frozenset[str]
    texts: frozenset[str]
    repeated: frozenset[str] = frozenset()


GENERATE = FormFields(FILES, TEXTS, REPEATED)


@dataclass(frozen=True)
class Body:
    """What was sent: values by field, and uploaded files by field."""

    values: dict[str, Any]
    files: dict[str, BinaryIO] = field(default_factory=dict)


async def read_body(request: Request) -> AsyncIterator[Body]:
    """The body of `POST /generate`: a dependency."""
    async with opened_body(request, GENERATE) as body:
        yield body


@asynccontextmanager
async def opened_body(request: Request, fields: FormFields) -> AsyncIterator[Body]:
    """The body of this request, whose files are closed when it is answered.

    Raises BodyTooLarge, MalformedBody, UnsupportedMediaType, InvalidRequest.
    """
    settings: Settings = request.app.state.backend.settings
    media_type, _ = parse_options_header(request.headers.get("Content-Type"))
    if media_type == b"application/json":
        yield Body(await _read_json(request, settings.max_json_bytes))
    elif media_type == b"multipart/form-data":
        form = await _read_form(request, settings.max_body_bytes, len(fields.files))
        try:
            yield _from_form(form, fields)
        finally:
            await form.close()
    else:
        raise UnsupportedMediaType("send application/json or multipart/form-data")


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("Content-Length", "")
    received = int(declared) if declared.isdecimal() else 0
    if received > max_bytes:
        raise BodyTooLarge(f"the body has {received} bytes, of at most {max_bytes}")
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise BodyTooLarge(f"the body has more than {max_bytes} bytes")
        yield chunk


async def _read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    content = b"".join([chunk async for chunk in _bounded(request, max_bytes)])
    try:
        values = _parsed(content)
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise MalformedBody("the body must be a JSON object")
    return values


def _parsed(content: bytes | str) -> object:
    """JSON as its standard has it, in which no object has a name twice. Raises ValueError."""
    values = from_json(content, allow_inf_nan=False)
    json.loads(content, object_pairs_hook=_named_once)  # less strict, but it sees the pairs
    return values


def _named_once(pairs: list[tuple[str, object]]) -> None:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise ValueError(f"{name[:_SHOWN_CHARACTERS]!r} is given twice")
        names.add(name)


async def _read_form(request: Request, max_bytes: int, max_files: int) -> FormData:
    stream = _bounded(request, max_bytes)
    parser = MultiPartParser(request.headers, stream, max_files=max_files, max_fields=_MAX_FIELDS)
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise MalformedBody(f"the form cannot be read: {error.message}") from error


def _from_form(form: FormData, fields: FormFields) -> Body:
    """A form's fields as JSON has them: texts as they are, the rest as it would be written in JSON."""
    values: dict[str, Any] = {}
    files: dict[str, BinaryIO] = {}
    for name in form:
        given = [item for item in form.getlist(name) if not _left_empty(item)]
        uploads = [item.file for item in given if isinstance(item, UploadFile)]
        texts = [item for item in given if isinstance(item, str)]
        if uploads:
            files[name] = _only_file(name, uploads, texts, fields)
        elif texts:
            values[name] = texts if name in fields.repeated else _value(name, texts, fields)
    return Body(values, files)


def _left_empty(item: str | UploadFile) -> bool:
    """Whether a browser sent this for a file field in which nothing was chosen."""
    return isinstance(item, UploadFile) and not item.filename and not item.size


def _only_file(name: str, uploads: list[BinaryIO], texts: list[str], fields: FormFields) -> BinaryIO:
    if name not in fields.files:
        raise InvalidRequest(f"{name}: takes no file", name)
    if len(uploads) > 1 or texts:
        raise InvalidRequest(f"{name}: is given twice", name)
    return uploads[0]


def _value(name: str, texts: list[str], fields: FormFields) -> object:
    if len(texts) > 1:
        raise InvalidRequest(f"{name}: is given twice", name)
    if name in fields.texts:
        return texts[0]
    try:
        return _parsed(texts[0])
    except ValueError:
        return texts[0]  # which the field's type will refuse, and say why
