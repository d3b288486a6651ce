"""A Redis that is killed: jobs whose submission was acknowledged are there when it is back.

That takes `appendfsync always`. With `everysec` Redis answers before it has written anything while an earlier
fsync is under way, and a kill in that moment loses what was acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from redis import Redis

from jobs.connect import connect
from jobs.errors import LeaseLost, Unavailable
from jobs.queue import TicketQueue
from jobs.sweep import sweep
from jobs.transitions import Ledger
from stack.redis_server import RedisServer
from tests.jobs.examples import LEASE_S, a_result, a_submission
from tests.servers import redis_program
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
    redis = connect(server.url, patience_s=0)
    ledger, tickets = Ledger(redis), TicketQueue(redis)
    acknowledged: list[str] = []
    killed = Event()

    def submit_until_it_is_gone() -> None:
        while not killed.is_set():
            try:
                job = ledger.submit(a_submission())
                acknowledged.append(job.id)
                tickets.deliver(job.id)
            except Unavailable:
                return

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(submit_until_it_is_gone)
        wait_until(lambda: len(acknowledged) > 100)
        server.kill()
        killed.set()
    server.start()
    assert {ledger.get(job_id).status for job_id in acknowledged} == {"queued"}
    sweep(ledger, tickets)
    assert tickets.count() >= ledger.counts()["queued"] >= len(acknowledged)
    claimed = {claim.job.id for claim in iter(lambda: ledger.claim("a", LEASE_S), None)}
    assert claimed >= set(acknowledged)


def test_a_holder_goes_on_over_a_killed_redis(server: RedisServer):
    ledger = Ledger(connect(server.url, patience_s=60))
    ledger.submit(a_submission(id="abc"))
    claim = ledger.claim("a", LEASE_S)
    assert claim is not None
    server.kill()
    server.start()
    assert ledger.sweep().requeued == ()
    assert ledger.beat(claim) == "go"
    assert ledger.succeed(claim, a_result(claim), {}) == "succeeded"


def test_a_result_is_committed_once_over_a_killed_redis(server: RedisServer):
    ledger = Ledger(connect(server.url, patience_s=60))
    ledger.submit(a_submission(id="abc"))
    zombie = ledger.claim("a", 0.05)
    assert zombie is not None
    wait_until(lambda: "abc" in ledger.sweep().requeued)
    holder = ledger.claim("b", LEASE_S)
    assert holder is not None
    ledger.succeed(holder, a_result(holder), {})
    server.kill()
    server.start()
    with pytest.raises(LeaseLost):
        ledger.succeed(zombie, a_result(zombie), {})
    assert ledger.succeed(holder, a_result(holder), {}) == "succeeded"
    assert ledger.get("abc").result == a_result(holder)
