"""Print replies of the service as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import BaseModel


def as_json(reply: BaseModel) -> dict[str, Any]:
    """Return what the service sent, without fields that it did not send."""
    return reply.model_dump(mode="json", exclude_unset=True)


def print_json(value: object) -> None:
    """Write a value to standard output, on several lines."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
