"""Real places for the worker's parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.worker.examples import Desk


@pytest.fixture
def desk(redis: Redis, redis_server: str, tmp_path: Path) -> Iterator[Desk]:
    """A job_store in an empty Redis, a storage and a spool.

    Its client is not closed: threads of the worker have no end, and may be in the middle of something.
    """
    desk = Desk(Redis.from_url(redis_server), tmp_path)
    yield desk
    desk.close()
