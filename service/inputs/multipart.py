"""Parse a form (`multipart/form-data`) as it arrives, more strictly than Starlette does."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from encodings.aliases import aliases
from pathlib import Path
from tempfile import SpooledTemporaryFile

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import BodyTooLarge

_CODECS = (frozenset(aliases.values()) | {"koi8_u"}) - {"utf_7", "mbcs"}
_PLAIN_TRANSFERS = {b"7bit", b"8bit", b"binary"}


class FormParser(MultiPartParser):
    """Limit the total size of a form's texts, and refuse a form without its closing boundary.

    Texts are in UTF-8, unless the `Content-Type` of the form or of a part names another charset; others are
    refused, and so are parts in base64 or quoted-printable.
    Large files are spooled to `spool_folder`, or to the system's temporary folder.
    """

    def __init__(
        self,
        headers: Headers,
        stream: AsyncGenerator[bytes, None],
        *,
        max_files: int,
        max_fields: int,
        max_text_bytes: int,
        spool_folder: Path | None,
    ) -> None:
        super().__init__(headers, stream, max_files=max_files, max_fields=max_fields)
        self._max_text_bytes = max_text_bytes
        self._spool_folder = spool_folder
        self._text_bytes = 0
        self._is_complete = False

    async def parse(self) -> FormData:
        """Return the form. Raise MultiPartException, BodyTooLarge."""
        self.stream = self._checked_for_end(self.stream)
        charset = _charset_of(self.headers.get("Content-Type")) or "utf-8"
        try:
            codec_of(charset)
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
            folder = str(self._spool_folder) if self._spool_folder else None
            upload.file.close()
            spool = SpooledTemporaryFile(self.spool_max_size, dir=folder)  # noqa: SIM115
            upload.file = spool  # type: ignore[assignment]
            self._files_to_close_on_error.append(spool)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Handle a chunk of a part."""
        if self._current_part.file is None:
            self._text_bytes += end - start
            if self._text_bytes > self._max_text_bytes:
                raise BodyTooLarge(f"the form has more than {self._max_text_bytes} bytes of texts")
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        """Refuse a text that is not in its charset: Starlette would read it as Latin-1."""
        part = self._current_part
        if part.file is None:
            charset = _charset_of(dict(part.item_headers).get(b"content-type"))
            try:
                codec = codec_of(charset) if charset else self._charset
                part.data = bytearray(part.data.decode(codec).encode(self._charset))
            except (ValueError, LookupError) as error:
                raise MultiPartException(f"{part.field_name} is not in {charset or self._charset}") from error
        super().on_part_end()

    def on_end(self) -> None:
        """Record the closing boundary."""
        self._is_complete = True

    async def _checked_for_end(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            yield chunk
        if not self._is_complete:
            raise MultiPartException("its closing boundary is missing")


def codec_of(charset: str) -> str:
    """Return Python's name for a charset. Raise LookupError if forms may not have it.

    Names that clients choose are not passed to Python, which remembers every name for ever. It also knows
    codecs that are no charsets: punycode and idna need quadratic time, and from UTF-7 and unicode_escape come
    texts that cannot be encoded in UTF-8. Python has mbcs on Windows alone.
    """
    name = charset.lower().replace("-", "_")
    codec = aliases.get(name, name)
    if codec not in _CODECS:
        raise LookupError("not a charset of forms")
    return codec


def _charset_of(content_type: str | bytes | None) -> str | None:
    """Return the charset that a `Content-Type` names."""
    charset = parse_options_header(content_type)[1].get(b"charset")
    return charset.decode("latin-1") if charset else None
