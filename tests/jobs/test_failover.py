"""Jobs survive the death of the primary: three Redis servers and three Sentinels."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Self

import pytest
from redis import Redis

from jobs.connect import connect
from jobs.errors import Unavailable
from jobs.queue import TicketQueue, consume
from jobs.storage.keys import new_job_id
from jobs.store.job_store import JobStore
from jobs.store.scripts import Replication
from tests.jobs.examples import a_submission
from tests.redis_fleet import Fleet, redis_fleet
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

NUM_KILLS = 2
NUM_CLIENTS = 3


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with redis_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


class Load:
    """Clients that submit jobs until they are told to stop."""

    def __init__(self, url: str) -> None:
        self.acknowledged: list[str] = []
        self._store = JobStore(connect(url, 2.0), replication=Replication(1, 1.0))
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._submit) for _ in range(NUM_CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int = 30) -> None:
        before = len(self.acknowledged)
        wait_until(lambda: len(self.acknowledged) >= before + count)

    def lost(self, redis: Redis) -> set[str]:
        exist = redis.pipeline(transaction=False)
        for job_id in self.acknowledged:
            exist.exists(f"longcat:job:{job_id}")
        found = exist.execute()
        return {job_id for job_id, is_there in zip(self.acknowledged, found, strict=True) if not is_there}

    def _submit(self) -> None:
        while not self._stopped.is_set():
            job_id = new_job_id()
            try:
                self._store.client.submit(a_submission(id=job_id))
            except Unavailable:
                time.sleep(0.05)
            else:
                self.acknowledged.append(job_id)


def test_no_acknowledged_job_is_lost_when_the_primary_dies(fleet: Fleet):
    with Load(fleet.url) as load:
        for _ in range(NUM_KILLS):
            load.wait_for_more()
            killed = fleet.kill_primary()
            load.wait_for_more()
            fleet.recover(killed)
    with connect(fleet.url) as redis:
        assert load.lost(redis) == set()


def test_worker_receives_tickets_through_sentinel(fleet: Fleet):
    taken: list[int] = []
    with connect(fleet.url) as redis:
        TicketQueue(redis).enqueue("abc")
        consume(redis, lambda: taken.append(1), lambda: bool(taken))
    assert taken == [1]


def test_change_without_enough_replicas_is_not_acknowledged(fleet: Fleet):
    with connect(fleet.url) as redis:
        store = JobStore(redis, replication=Replication(len(fleet.servers), 1.0))
        with pytest.raises(Unavailable, match=r"only \d replicas"):
            store.client.submit(a_submission(id="repeated"))
        store = JobStore(redis, replication=Replication(len(fleet.servers) - 1, 30.0))
        assert store.client.submit(a_submission(id="repeated")).job.status == "queued"
