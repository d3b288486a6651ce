"""Reading the body of a request that creates something: JSON, or a form with the same fields and files.

A dependency of routes. It bounds what is read while it is read, and brings both kinds to the same values;
what the values mean is said by `service.jobs.bodies`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from jobs.errors import InvalidRequest
from service.backend import Backend, Served
from service.errors import BodyTooLarge, MalformedBody, UnsupportedMediaType
from service.http.capacity import Share
from service.http.json_body import parse_json
from service.jobs.bodies import GenerateRequest, text_fields

FILES = frozenset({"image", "video", "condition_video"})
TEXTS = text_fields(GenerateRequest)
REPEATED = frozenset({"prompts"})
_MAX_FIELDS = 1000
_FREE_BYTES = 64 << 10  # of each body, so that an ordinary request finds memory at any time


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
    has_inputs: bool = False


async def read_body(request: Request, backend: Served) -> AsyncIterator[Body]:
    """The body of `POST /generate`: a dependency."""
    async with opened_body(request, GENERATE, backend) as body:
        yield body


@asynccontextmanager
async def opened_body(request: Request, fields: FormFields, backend: Backend) -> AsyncIterator[Body]:
    """The body of this request, whose files are closed when it is answered.

    Raises BodyTooLarge, MalformedBody, UnsupportedMediaType, InvalidRequest, LimitReached, Busy, and
    ClientDisconnect.
    """
    settings, capacities = backend.settings, backend.capacities
    media_type, _ = parse_options_header(request.headers.get("Content-Type"))
    with capacities.body_memory.share(backend.owner) as memory:
        if media_type == b"application/json":
            with capacities.open_bodies.share(backend.owner) as opened:
                opened.take(1)
                content = await _read_json(_bounded(request, settings.max_json_bytes, memory))
            values = await capacities.parse(lambda: _json_object(content, settings.max_json_text_bytes))
            yield Body(values, has_inputs=_names_inputs(values, fields))
        elif media_type == b"multipart/form-data":
            with capacities.open_bodies.share(backend.owner) as opened:
                opened.take(1)
                chunks = _bounded(request, settings.max_body_bytes, memory, _memory_of_form(fields))
                form = await _read_form(request, chunks, len(fields.files), settings.max_json_text_bytes)
            try:
                yield await capacities.parse(lambda: _from_form(form, fields, settings.max_json_text_bytes))
            finally:
                await form.close()
        else:
            raise UnsupportedMediaType("send application/json or multipart/form-data")


async def _bounded(
    request: Request, max_bytes: int, memory: Share, max_memory_bytes: int | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield a body whose size is bounded; what of it lies in memory counts, but for a small beginning."""
    declared = request.headers.get("Content-Length", "")
    received = int(declared) if declared.isdecimal() else 0
    if received > max_bytes:
        raise BodyTooLarge(f"the body has {received} bytes, of at most {max_bytes}")
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise BodyTooLarge(f"the body has more than {max_bytes} bytes")
        in_memory = received if max_memory_bytes is None else min(received, max_memory_bytes)
        if in_memory > _FREE_BYTES + memory.amount:
            memory.take(in_memory - _FREE_BYTES - memory.amount)
        yield chunk


async def _read_json(chunks: AsyncIterator[bytes]) -> bytearray:
    content = bytearray()
    async for chunk in chunks:
        content += chunk
    return content


def _json_object(content: bytearray, max_text_bytes: int) -> dict[str, Any]:
    try:
        values = parse_json(content, max_text_bytes)
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise MalformedBody("the body must be a JSON object")
    return values


def _names_inputs(values: dict[str, Any], fields: FormFields) -> bool:
    return not fields.files.isdisjoint(name.partition("[")[0] for name in values)


def _memory_of_form(fields: FormFields) -> int:
    """Return how much of a form lies in memory at most: its texts, and the beginning of each file."""
    return (len(fields.files) + 1) * MultiPartParser.spool_max_size


async def _read_form(
    request: Request, chunks: AsyncGenerator[bytes, None], max_files: int, max_text_bytes: int
) -> FormData:
    parser = _FormParser(request.headers, chunks, max_files=max_files, max_fields=_MAX_FIELDS)
    parser.max_text_bytes = max_text_bytes
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise MalformedBody(f"the form cannot be read: {error.message}") from error


class _FormParser(MultiPartParser):
    """Bounds all texts of a form together, and refuses a form without its closing boundary."""

    max_text_bytes = 1 << 20
    text_bytes = 0
    is_complete = False

    async def parse(self) -> FormData:
        """Return the form. Raise MultiPartException, BodyTooLarge."""
        self.stream = self._whole(self.stream)
        return await super().parse()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Take a piece of a part."""
        if self._current_part.file is None:
            self.text_bytes += end - start
            if self.text_bytes > self.max_text_bytes:
                raise BodyTooLarge(f"the form has more than {self.max_text_bytes} bytes of texts")
        super().on_part_data(data, start, end)

    def on_end(self) -> None:
        """Note the closing boundary."""
        self.is_complete = True

    async def _whole(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            yield chunk
        if not self.is_complete:
            raise MultiPartException("its closing boundary is missing")


def _from_form(form: FormData, fields: FormFields, max_text_bytes: int) -> Body:
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
            values[name] = texts if name in fields.repeated else _value(name, texts, fields, max_text_bytes)
    return Body(values, files, has_inputs=bool(files) or _names_inputs(values, fields))


def _left_empty(item: str | UploadFile) -> bool:
    """Whether a browser sent this for a file field in which nothing was chosen."""
    return isinstance(item, UploadFile) and not item.filename and not item.size


def _only_file(name: str, uploads: list[BinaryIO], texts: list[str], fields: FormFields) -> BinaryIO:
    if name not in fields.files:
        raise InvalidRequest(f"{name}: takes no file", name)
    if len(uploads) > 1 or texts:
        raise InvalidRequest(f"{name}: is given twice", name)
    return uploads[0]


def _value(name: str, texts: list[str], fields: FormFields, max_text_bytes: int) -> object:
    if len(texts) > 1:
        raise InvalidRequest(f"{name}: is given twice", name)
    if name in fields.texts:
        return texts[0]
    try:
        return parse_json(texts[0].encode(), max_text_bytes)
    except ValueError:
        return texts[0]  # which the field's type will refuse, and say why
