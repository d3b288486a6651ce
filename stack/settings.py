"""The settings of the stack, and the environment it hands to the processes it starts.

The one file of this process that reads the environment. Settings that the stack does not use itself go on to
the API and the worker as they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from jobs.settings import POCKET, PREFIX, SharedSettings

_OF_THE_API_ALONE = (f"{PREFIX}API_", f"{PREFIX}WEBHOOK_")
_FOR_REDIS = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


class StackSettings(SharedSettings):
    """What the stack itself has to know; `LONGCAT_<NAME>` in the environment."""

    redis_url: str = Field(default="", description="empty: a private Redis under DATA_DIR")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    checkpoint: Path = Field(default=POCKET, description="the folder with the weights")


def environment_for_children(**changed: str | Path | int) -> dict[str, str]:
    """The environment as it is, with these `LONGCAT_` settings in it; names as in the settings classes."""
    settled = {f"{PREFIX}{name.upper()}": str(value) for name, value in changed.items()}
    return {**os.environ, **settled, "PYTHONUNBUFFERED": "1"}


def environment_for_worker(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the children's environment without the API's own secrets: its key, the secrets of webhooks."""
    return {name: value for name, value in environment.items() if not name.startswith(_OF_THE_API_ALONE)}


def environment_for_redis() -> dict[str, str]:
    """Return what a private Redis needs of the environment; it has no use for any setting or secret."""
    return {name: os.environ[name] for name in _FOR_REDIS if name in os.environ}
