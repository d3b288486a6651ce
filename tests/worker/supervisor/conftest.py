"""Provide real backends for the supervisor's components."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.worker.supervisor.backends import LocalBackends


@pytest.fixture
def backends(redis: Redis, tmp_path: Path) -> Iterator[LocalBackends]:
    """A job store in an empty Redis, a storage, a spool and a running checkpoint uploader."""
    backends = LocalBackends(redis, tmp_path)
    backends.checkpoints.start()
    yield backends
    backends.checkpoints.stop()
    backends.checkpoints.join(30)
    assert not backends.checkpoints.is_alive()
