"""Read the body of a request that creates a job: JSON, or a form with the same fields and files.

Size and memory are limited while the body arrives. Both kinds result in the same values, which
`service.jobs.bodies` validates.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException

from service.backend import CurrentBackend, RequestBackend
from service.errors import BodyTooLarge, MalformedBody, UnsupportedMediaType
from service.http.capacity import Share
from service.http.json_body import ArrivingJson, parse_json
from service.inputs.form import FormFields, read_form
from service.inputs.multipart import FormParser
from service.inputs.uploads import disk_full_refused
from service.jobs.bodies import GenerateRequest

FILES = frozenset({"image", "video", "condition_video"})
GENERATE = FormFields.of(GenerateRequest, FILES)
_MAX_FIELDS = 1000
_UNCOUNTED_BYTES = 64 << 10  # of each body, so that ordinary requests always find memory


@dataclass(frozen=True)
class Body:
    """A request body: values by field and uploaded files by field."""

    values: dict[str, Any]
    files: dict[str, BinaryIO] = field(default_factory=dict)
    has_inputs: bool = False


async def receive_generate_body(request: Request, backend: CurrentBackend) -> AsyncIterator[Body]:
    """Yield the body of `POST /generate`, as a dependency of the route."""
    async with receive_body(request, GENERATE, backend) as body:
        yield body


@asynccontextmanager
async def receive_body(request: Request, fields: FormFields, backend: RequestBackend) -> AsyncIterator[Body]:
    """Yield the body of a request. Its files are closed when the context ends.

    Raises BodyTooLarge, MalformedBody, UnsupportedMediaType, InvalidRequest, LimitReached, Busy, DiskFull and
    ClientDisconnect.
    """
    settings, capacities = backend.settings, backend.capacities
    media_type, _ = parse_options_header(request.headers.get("Content-Type"))
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding: it must not be compressed")
    with capacities.body_memory.share(backend.caller.owner) as memory:
        if media_type == b"application/json":
            with capacities.open_bodies.share(backend.caller.owner) as open_bodies:
                open_bodies.take(1)
                chunks = _bounded(request, settings.max_json_bytes, memory)
                content = await _read_json(chunks, settings.max_json_text_bytes)
            values = await capacities.parse(lambda: _json_object(content, settings.max_json_text_bytes))
            yield Body(values, has_inputs=_names_inputs(values, fields))
        elif media_type == b"multipart/form-data":
            with capacities.open_bodies.share(backend.caller.owner) as open_bodies:
                open_bodies.take(1)
                chunks = _bounded(request, settings.max_body_bytes, memory, _memory_of_form(fields))
                parser = FormParser(
                    request.headers,
                    chunks,
                    max_files=len(fields.files),
                    max_fields=_MAX_FIELDS,
                    max_text_bytes=settings.max_json_text_bytes,
                    spool_folder=settings.upload_dir,
                )
                form = await _receive_form(parser)
            try:
                values, files = await capacities.parse(
                    lambda: read_form(form, fields, settings.max_json_text_bytes)
                )
                yield Body(values, files, has_inputs=bool(files) or _names_inputs(values, fields))
            finally:
                await form.close()
        else:
            raise UnsupportedMediaType("send application/json or multipart/form-data")


async def _bounded(
    request: Request, max_bytes: int, memory: Share, max_memory_bytes: int | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield the body in chunks, limit its size, and count the memory that it takes.

    `max_memory_bytes` is what stays in memory of a body that is spooled to disk; None means all of it. Raises
    BodyTooLarge, LimitReached, Busy.
    """
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
        if in_memory > _UNCOUNTED_BYTES + memory.amount:
            memory.take(in_memory - _UNCOUNTED_BYTES - memory.amount)
        yield chunk


async def _read_json(chunks: AsyncIterator[bytes], max_text_bytes: int) -> bytearray:
    arriving = ArrivingJson(max_text_bytes)
    async for chunk in chunks:
        arriving.add(chunk)
    return arriving.content


def _json_object(content: bytearray, max_text_bytes: int) -> dict[str, Any]:
    if content.startswith(codecs.BOM_UTF8):  # editors and shells of Windows write it
        del content[: len(codecs.BOM_UTF8)]
    try:
        values = parse_json(content, max_text_bytes)
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise MalformedBody("the body must be a JSON object")
    return values


def _names_inputs(values: dict[str, Any], fields: FormFields) -> bool:
    return any(values.get(name) is not None for name in fields.files)


def _memory_of_form(fields: FormFields) -> int:
    """Return the most memory that a form takes: its texts, and the part of each file before it is spooled."""
    return (len(fields.files) + 1) * FormParser.spool_max_size


async def _receive_form(parser: FormParser) -> FormData:
    try:
        with disk_full_refused():
            return await parser.parse()
    except MultiPartException as error:
        raise MalformedBody(f"the form cannot be read: {error.message}") from error
