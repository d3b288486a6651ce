"""Byte ranges of RFC 9110, section 14: which part of a file a request wants. It knows no files."""

from __future__ import annotations

import re

from service.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.ASCII | re.IGNORECASE)
_MAX_DIGITS = 18


def wanted_range(header: str | None, size_bytes: int) -> range | None:
    """The bytes that a Range header asks for; None is the whole file.

    A header that is malformed or asks for several ranges is ignored, as the standard allows. Raises
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
