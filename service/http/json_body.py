"""Parse JSON from clients after checking its size and structure.

A short text such as `[[],[],…` can take a thousand times its size in memory once parsed. So the number of
values and the depth are limited before parsing, by a few passes over the bytes that run in C. Long strings
(files in base64) take no more memory than their size and are not limited here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from pydantic_core import from_json

from service.errors import BodyTooLarge

MAX_DEPTH = 16
MAX_VALUES = 10_000
_MAX_QUOTES = 4 * MAX_VALUES
_LONG_STRING_BYTES = 16 << 10
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(content: bytes | bytearray, max_text_bytes: int) -> object:
    """Return the parsed value.

    Args:
        content: the JSON text. Numbers that are not finite and duplicate names in an object are refused.
        max_text_bytes: limits everything but strings of 16 KiB and more.

    Raises:
        ValueError: the content is not JSON.
        BodyTooLarge: it is too large, or has too many values.
    """
    structure = _structure(content, max_text_bytes)
    num_values = sum(structure.count(mark) for mark in (b",", b":", b"[", b"{"))
    if num_values > MAX_VALUES:
        raise BodyTooLarge(f"the JSON has more than {MAX_VALUES} values")
    if _depth(structure) > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    value = from_json(content, allow_inf_nan=False)
    if sum(len(found) for found in _objects(value)) != structure.count(b":"):
        raise ValueError("a name occurs twice in an object")  # the parser has kept only the last
    return value


class ArrivingJson:
    """Refuse JSON as soon as too much of it has arrived, before its end is known."""

    def __init__(self, max_text_bytes: int) -> None:
        self.content = bytearray()
        self._max_text_bytes = max_text_bytes
        self._structure_bytes = 0
        self._num_quotes = 0
        self._is_escaped = False  # the last chunk ended with the backslash of an escape

    def add(self, chunk: bytes) -> None:
        """Append a chunk. Raise BodyTooLarge if there are too many bytes or strings outside long strings."""
        self.content += chunk
        if not chunk:
            return
        rest = chunk[1:] if self._is_escaped else chunk
        self._is_escaped = (len(rest) - len(rest.rstrip(b"\\"))) % 2 == 1
        rest = bytes(_without_escapes(rest))
        in_string = self._num_quotes % 2
        self._num_quotes += rest.count(b'"')
        _check_quotes(self._num_quotes)
        self._structure_bytes += sum(len(text) for text in rest.split(b'"')[in_string::2])
        _check_text(self._structure_bytes, self._max_text_bytes)


def _structure(content: bytes | bytearray, max_text_bytes: int) -> bytes:
    """Return the bytes outside strings.

    For invalid JSON the result is right up to the point at which the parser stops.
    """
    content = _without_escapes(content)
    _check_quotes(content.count(b'"'))
    pieces = content.split(b'"')
    structure = b"".join(pieces[::2])
    short_bytes = sum(len(text) for text in pieces[1::2] if len(text) < _LONG_STRING_BYTES)
    _check_text(len(structure) + short_bytes, max_text_bytes)
    return structure


def _without_escapes(content: bytes | bytearray) -> bytes | bytearray:
    """Remove the escapes of quotes and of backslashes, so that every quote delimits a string."""
    if b"\\" not in content:
        return content
    return content.replace(b"\\\\", b"").replace(b'\\"', b"")


def _check_quotes(num_quotes: int) -> None:
    if num_quotes > _MAX_QUOTES:
        raise BodyTooLarge(f"the JSON has more than {_MAX_QUOTES // 2} strings")


def _check_text(num_bytes: int, max_text_bytes: int) -> None:
    if num_bytes > max_text_bytes:
        raise BodyTooLarge(f"the JSON has more than {max_text_bytes} bytes besides long strings")


def _depth(structure: bytes) -> int:
    brackets = structure.translate(None, _NO_BRACKETS)
    if len(brackets) > 2 * MAX_VALUES:
        raise ValueError("more brackets are closed than opened")
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)


def _objects(value: object) -> Iterator[dict[str, object]]:
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, dict):
            yield found
            pending += found.values()
        elif isinstance(found, list):
            pending += found
