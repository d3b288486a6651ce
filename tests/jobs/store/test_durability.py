"""Jobs whose submission was acknowledged survive a kill of Redis.

This needs `appendfsync always`. With `everysec`, Redis may reply before it has written anything, and a kill
then loses acknowledged jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
from redis import Redis

from jobs.connect import connect
from jobs.errors import LeaseLost, Unavailable
from jobs.maintenance import sweep
from jobs.queue import TicketQueue
from jobs.store.job_store import JobStore
from stack.redis_server import RedisServer
from tests.jobs.examples import LEASE_S, a_result, a_submission
from tests.servers import redis_program
from tests.tickets import num_tickets
from tests.waiting import wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of our own, to be killed."""
    server = RedisServer(tmp_path, redis_program())
    server.start()
    with Redis.from_url(server.url) as redis:
        redis.config_set("appendfsync", "always")
    yield server
    server.stop()


def test_no_acknowledged_job_is_lost_when_redis_is_killed(server: RedisServer):
    acknowledged: list[str] = []
    killed = Event()

    def submit_until_it_is_killed() -> None:
        redis = connect(server.url, deadline_s=1)
        store, tickets = JobStore(redis), TicketQueue(redis)
        while not killed.is_set():
            with suppress(Unavailable):
                job = store.client.submit(a_submission()).job
                acknowledged.append(job.id)
                tickets.enqueue(job.id, job.requirement or "")

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(submit_until_it_is_killed)
        wait_until(lambda: len(acknowledged) > 100)
        server.kill()
        killed.set()
    server.start()
    redis = connect(server.url, deadline_s=60)
    store, tickets = JobStore(redis), TicketQueue(redis)
    assert {store.client.get(job_id).status for job_id in acknowledged} == {"queued"}
    sweep(store, tickets)
    assert num_tickets(redis) >= store.client.counts()["queued"] >= len(acknowledged)
    claimed = {claim.job.id for claim in iter(lambda: store.holder.claim("a", LEASE_S), None)}
    assert claimed >= set(acknowledged)


def test_holder_survives_a_killed_redis(server: RedisServer):
    store = JobStore(connect(server.url, deadline_s=60))
    store.client.submit(a_submission(id="abc"))
    claim = store.holder.claim("a", LEASE_S)
    assert claim is not None
    server.kill()
    server.start()
    assert store.maintenance.sweep().requeued == ()
    assert store.holder.renew_lease(claim) is None
    assert store.holder.succeed(claim, a_result(claim), {}) == "succeeded"


def test_result_is_committed_once_despite_a_killed_redis(server: RedisServer):
    store = JobStore(connect(server.url, deadline_s=60))
    store.client.submit(a_submission(id="abc"))
    zombie = store.holder.claim("a", 0.05)
    assert zombie is not None
    wait_until(lambda: "abc" in store.maintenance.sweep().requeued)
    holder = store.holder.claim("b", LEASE_S)
    assert holder is not None
    store.holder.succeed(holder, a_result(holder), {})
    server.kill()
    server.start()
    with pytest.raises(LeaseLost):
        store.holder.succeed(zombie, a_result(zombie), {})
    assert store.holder.succeed(holder, a_result(holder), {}) == "succeeded"
    assert store.client.get("abc").result == a_result(holder)
