"""Define the messages between the fork server and its owner, and the type of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """A decoder to run, with its arguments and its limits."""

    decoder: str
    arguments: dict[str, Any]
    memory_bytes: int
    timeout_s: float


@dataclass(frozen=True)
class Output:
    """The result of a decoder: values for JSON, and `size_bytes` of data in chunks."""

    facts: dict[str, Any]
    size_bytes: int = 0
    chunks: Iterable[bytes] = ()


Decoder = Callable[..., Output]
"""A function of an open file and the arguments of a request. Raises UnusableMedia.

Any other exception means that the file is damaged.
"""
