"""A job_store on an empty Redis whose time the test moves, and a storage."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from jobs.storage.folder import FolderStorage
from jobs.store.job_store import JobStore
from tests.jobs.examples import Clock, Desk


@pytest.fixture
def desk(redis: Redis) -> Desk:
    """A job_store with a clock of its own."""
    return Desk.open(redis)


@pytest.fixture
def job_store(desk: Desk) -> JobStore:
    """The desk's job_store."""
    return desk.job_store


@pytest.fixture
def clock(desk: Desk) -> Clock:
    """The desk's clock."""
    return desk.clock


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    """An empty folder."""
    return FolderStorage(tmp_path / "storage")
