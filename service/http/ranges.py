"""Parse `Range` headers (RFC 9110, section 14).

Starlette's FileResponse is not used: it serves local files only, while a storage may be an object store, and
it answers malformed headers and several ranges otherwise than this API does (400 and multipart instead of
the whole file) and a range after the end of the file without our JSON error.
"""

from __future__ import annotations

import re

from service.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.ASCII | re.IGNORECASE)
_MAX_DIGITS = 18


def parse_range(header: str | None, size_bytes: int) -> range | None:
    """Return the bytes that a Range header asks for, cut to the file; None for the whole file.

    A header that is malformed or names several ranges means the whole file, as the RFC allows. Raises
    RangeNotSatisfiable.
    """
    match = _RANGE.fullmatch(header or "")
    if not match or len(match[0]) > 2 * _MAX_DIGITS:
        return None
    first, last = match.groups()
    if not first:
        return _last_bytes(last, size_bytes)
    if last and int(last) < int(first):
        return None
    if int(first) >= size_bytes:
        raise RangeNotSatisfiable(size_bytes)
    return range(int(first), min(int(last) + 1, size_bytes) if last else size_bytes)


def _last_bytes(count: str, size_bytes: int) -> range | None:
    if not count:
        return None
    if int(count) == 0 or size_bytes == 0:
        raise RangeNotSatisfiable(size_bytes)
    return range(max(0, size_bytes - int(count)), size_bytes)
