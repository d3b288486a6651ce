"""Read the body of a request that creates a job: JSON, or a form with the same fields and files.

Size and memory are limited while the body arrives. Both kinds result in the same values, which
`service.jobs.bodies` validates.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from service.backend import Backend, CurrentBackend
from service.errors import BodyTooLarge, MalformedBody, UnsupportedMediaType
from service.http.capacity import Share
from service.http.json_body import ArrivingJson, parse_json
from service.inputs.form import FormFields, read_form
from service.inputs.uploads import disk_full_refused
from service.jobs.bodies import GenerateRequest

FILES = frozenset({"image", "video", "condition_video"})
GENERATE = FormFields.of(GenerateRequest, FILES)
_MAX_FIELDS = 1000
_PLAIN_TRANSFERS = {b"7bit", b"8bit", b"binary"}
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
async def receive_body(request: Request, fields: FormFields, backend: Backend) -> AsyncIterator[Body]:
    """Yield the body of a request. Its files are closed when the context ends.

    Raises BodyTooLarge, MalformedBody, UnsupportedMediaType, InvalidRequest, LimitReached, Busy, DiskFull and
    ClientDisconnect.
    """
    settings, capacities = backend.settings, backend.capacities
    media_type, _ = parse_options_header(request.headers.get("Content-Type"))
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding: it must not be compressed")
    with capacities.body_memory.share(backend.owner) as memory:
        if media_type == b"application/json":
            with capacities.open_bodies.share(backend.owner) as open_bodies:
                open_bodies.take(1)
                chunks = _bounded(request, settings.max_json_bytes, memory)
                content = await _read_json(chunks, settings.max_json_text_bytes)
            values = await capacities.parse(lambda: _json_object(content, settings.max_json_text_bytes))
            yield Body(values, has_inputs=_names_inputs(values, fields))
        elif media_type == b"multipart/form-data":
            with capacities.open_bodies.share(backend.owner) as open_bodies:
                open_bodies.take(1)
                chunks = _bounded(request, settings.max_body_bytes, memory, _memory_of_form(fields))
                parser = _FormParser(
                    request.headers, chunks, max_files=len(fields.files), max_fields=_MAX_FIELDS
                )
                parser.max_text_bytes = settings.max_json_text_bytes
                parser.spool_folder = settings.upload_dir
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
    return (len(fields.files) + 1) * MultiPartParser.spool_max_size


async def _receive_form(parser: _FormParser) -> FormData:
    try:
        with disk_full_refused():
            return await parser.parse()
    except MultiPartException as error:
        raise MalformedBody(f"the form cannot be read: {error.message}") from error


class _FormParser(MultiPartParser):
    """Limit the total size of a form's texts, and refuse a form without its closing boundary.

    Texts are in UTF-8, unless the `Content-Type` of the form or of a part names another charset; others are
    refused, and so are parts in base64 or quoted-printable.
    Large files are spooled to `spool_folder`, or to the system's temporary folder.
    """

    max_text_bytes = 1 << 20
    spool_folder: Path | None = None
    text_bytes = 0
    is_complete = False

    async def parse(self) -> FormData:
        """Return the form. Raise MultiPartException, BodyTooLarge."""
        self.stream = self._checked_for_end(self.stream)
        charset = _charset_of(self.headers.get("Content-Type")) or "utf-8"
        try:
            codecs.lookup(charset)
        except LookupError as error:
            raise MultiPartException(f"its charset {charset} is unknown") from error
        return await super().parse()

    def on_headers_finished(self) -> None:
        """Open the file of a part that is one."""
        super().on_headers_finished()
        transfer = dict(self._current_part.item_headers).get(b"content-transfer-encoding", b"binary")
        if transfer.strip().lower() not in _PLAIN_TRANSFERS:
            name = self._current_part.field_name
            raise MultiPartException(f"{name} has a Content-Transfer-Encoding: send it unencoded")
        if upload := self._current_part.file:
            folder = str(self.spool_folder) if self.spool_folder else None
            upload.file.close()
            spool = SpooledTemporaryFile(self.spool_max_size, dir=folder)  # noqa: SIM115
            upload.file = spool  # type: ignore[assignment]
            self._files_to_close_on_error.append(spool)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Handle a chunk of a part."""
        if self._current_part.file is None:
            self.text_bytes += end - start
            if self.text_bytes > self.max_text_bytes:
                raise BodyTooLarge(f"the form has more than {self.max_text_bytes} bytes of texts")
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        """Refuse a text that is not in its charset: Starlette would read it as Latin-1."""
        part = self._current_part
        if part.file is None:
            charset = _charset_of(dict(part.item_headers).get(b"content-type")) or self._charset
            try:
                part.data = bytearray(part.data.decode(charset).encode(self._charset))
            except (ValueError, LookupError) as error:
                raise MultiPartException(f"{part.field_name} is not in {charset}") from error
        super().on_part_end()

    def on_end(self) -> None:
        """Record the closing boundary."""
        self.is_complete = True

    async def _checked_for_end(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            yield chunk
        if not self.is_complete:
            raise MultiPartException("its closing boundary is missing")


def _charset_of(content_type: str | bytes | None) -> str | None:
    """Return the charset that a `Content-Type` names."""
    charset = parse_options_header(content_type)[1].get(b"charset")
    return charset.decode("latin-1") if charset else None
