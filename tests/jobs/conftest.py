"""A ledger on an empty Redis whose time the test moves, and a storage."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from jobs.folder import FolderStorage
from jobs.transitions import Ledger
from tests.jobs.examples import Clock, Desk


@pytest.fixture
def desk(redis: Redis) -> Desk:
    """A ledger with a clock of its own."""
    return Desk.open(redis)


@pytest.fixture
def ledger(desk: Desk) -> Ledger:
    """The desk's ledger."""
    return desk.ledger


@pytest.fixture
def clock(desk: Desk) -> Clock:
    """The desk's clock."""
    return desk.clock


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    """An empty folder."""
    return FolderStorage(tmp_path / "storage")
