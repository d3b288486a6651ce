"""Print replies of the service as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import BaseModel

_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""For the control characters that JSON may contain: terminals execute them."""


def as_json(reply: BaseModel) -> dict[str, Any]:
    """Return what the service sent, without fields that it did not send."""
    return reply.model_dump(mode="json", exclude_unset=True)


def print_json(value: object) -> None:
    """Write a value to standard output, on several lines."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False).translate(_ESCAPES) + "\n")
