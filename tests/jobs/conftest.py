"""Provide a job store on an empty Redis, with a clock that the test moves, and a storage."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from jobs.storage.folder import FolderStorage
from tests.jobs.examples import Clock, ExampleStore


@pytest.fixture
def store(redis: Redis) -> ExampleStore:
    """Return a job store with a clock of its own."""
    return ExampleStore(redis)


@pytest.fixture
def clock(store: ExampleStore) -> Clock:
    """Return the clock of `store`."""
    return store.clock


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    """Return an empty storage."""
    return FolderStorage(tmp_path / "storage")
