"""Define what the check reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Report a fact about the machine. A problem keeps the worker from running."""

    kind: Literal["ok", "note", "problem"]
    text: str
