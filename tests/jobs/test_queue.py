"""Tickets over RQ: delivered, taken, lost, forged; and Redis going away and coming back."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue
from rq.callbacks import Callback
from rq.job import Retry
from rq.serializers import JSONSerializer

from jobs.connect import connect
from jobs.errors import Unavailable
from jobs.maintenance import sweep
from jobs.queue import QUEUE_NAME, TICKET_TTL_S, TicketQueue, TicketWorker, consume, queue_name
from jobs.store.job_store import JobStore
from jobs.store.metrics import counters
from stack.redis_server import RedisServer
from tests.jobs.examples import LEASE_S, a_submission, keys_of
from tests.servers import redis_program
from tests.waiting import wait_until


@pytest.fixture
def tickets(redis: Redis) -> TicketQueue:
    return TicketQueue(redis)


@contextmanager
def consumer(redis: Redis, taken: list[int]) -> Iterator[Thread]:
    """A thread that notes every ticket it takes."""
    stop = Event()
    thread = Thread(target=consume, args=(redis, lambda: taken.append(len(taken)), stop.is_set))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


class TestDelivery:
    def test_enqueued_ticket_is_consumed_once(self, redis: Redis, tickets: TicketQueue):
        taken: list[int] = []
        with consumer(redis, taken):
            for _ in range(3):
                tickets.enqueue("abc")
            wait_until(lambda: len(taken) == 3)
            wait_until(lambda: tickets.count() == 0)
        assert len(taken) == 3

    def test_tickets_that_came_before_the_worker_wait_for_it(self, redis: Redis, tickets: TicketQueue):
        tickets.enqueue("abc")
        assert tickets.count() == 1
        taken: list[int] = []
        with consumer(redis, taken):
            wait_until(lambda: taken)

    def test_surplus_ticket_claims_no_job(self, redis: Redis, tickets: TicketQueue):
        store = JobStore(redis)
        job = store.client.submit(a_submission()).job
        claims = []
        stop = Event()

        def on_ticket() -> None:
            claims.append(store.holder.claim("a", LEASE_S))
            if len(claims) == 3:
                stop.set()

        for _ in range(3):
            tickets.enqueue(job.id)
        consume(redis, on_ticket, stop.is_set)
        assert [claim.job.id if claim else None for claim in claims] == [job.id, None, None]

    def test_top_up_enqueues_missing_tickets(self, tickets: TicketQueue):
        tickets.enqueue("abc")
        assert tickets.top_up(3) == 2
        assert tickets.top_up(3) == 0
        assert tickets.top_up(0) == 0
        assert tickets.count() == 3


class TestConsuming:
    def test_worker_stops_on_request(self, redis: Redis):
        with consumer(redis, []) as thread:
            wait_until(lambda: redis.scard("rq:workers") == 1)
        assert not thread.is_alive()
        assert redis.scard("rq:workers") == 0

    @pytest.mark.parametrize("error", [ZeroDivisionError, ValueError])
    def test_error_of_the_callback_reaches_the_caller(
        self, redis: Redis, tickets: TicketQueue, error: type[Exception]
    ):
        def on_ticket() -> None:
            raise error

        tickets.enqueue("abc")
        is_second_round = iter([False, True])
        with pytest.raises(error):
            consume(redis, on_ticket, is_second_round.__next__)

    @pytest.mark.parametrize(
        "error", [Unavailable("away"), ResponseError("user_script:7: attempt to compare")]
    )
    def test_next_ticket_is_taken_after_an_error_of_redis_in_a_callback(
        self,
        redis: Redis,
        tickets: TicketQueue,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        error: Exception,
    ):
        monkeypatch.setattr("jobs.queue.PAUSE_S", 0.01)
        calls = []

        def on_ticket() -> None:
            calls.append(1)
            if len(calls) == 1:
                raise error

        tickets.enqueue("one")
        tickets.enqueue("two")
        consume(redis, on_ticket, lambda: len(calls) == 2)
        assert tickets.count() == 0
        assert str(error) in caplog.text
        assert ("unreadable_records", "ticket") not in counters(redis)

    def test_two_workers_share_the_tickets(self, redis: Redis, tickets: TicketQueue):
        one: list[int] = []
        two: list[int] = []
        for _ in range(20):
            tickets.enqueue("abc")
        with consumer(redis, one), consumer(redis, two):
            wait_until(lambda: len(one) + len(two) == 20)

    def test_worker_continues_when_redis_lost_its_data(self, redis: Redis, tickets: TicketQueue):
        taken: list[int] = []
        with consumer(redis, taken):
            wait_until(lambda: redis.scard("rq:workers") == 1)
            redis.flushall()
            tickets.enqueue("abc")
            wait_until(lambda: taken)
            wait_until(lambda: redis.scard("rq:workers") == 1)

    def test_worker_survives_an_outage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("jobs.queue.PAUSE_S", 0.01)
        server = RedisServer(tmp_path, redis_program())
        server.start()
        taken: list[int] = []
        try:
            with connect(server.url, 1.5) as redis, connect(server.url) as patient, consumer(redis, taken):
                TicketQueue(patient).enqueue("before")
                wait_until(lambda: len(taken) == 1)
                server.kill()
                with pytest.raises(Unavailable):
                    TicketQueue(redis).enqueue("meanwhile")
                server.start()
                TicketQueue(patient).enqueue("after")
                wait_until(lambda: len(taken) >= 2)
        finally:
            server.stop()

    def test_no_keys_accumulate_in_redis(self, redis: Redis, tickets: TicketQueue):
        taken: list[int] = []
        with consumer(redis, taken):
            tickets.enqueue("warm up")
            wait_until(lambda: len(taken) == 1)
            wait_until(lambda: not keys_of(redis, "rq:job:*"))
            before = {key for key in keys_of(redis) if "worker" not in key}
            for _ in range(50):
                tickets.enqueue("abc")
            wait_until(lambda: len(taken) == 51)
            wait_until(lambda: not keys_of(redis, "rq:job:*"))
            assert {key for key in keys_of(redis) if "worker" not in key} == before
            assert len(keys_of(redis, "rq:worker:*")) <= 2

    def test_ticket_of_a_killed_worker_expires(self, redis: Redis, redis_server: str, tickets: TicketQueue):
        program = (
            "import os, sys, jobs.queue; from redis import Redis\n"
            "class Killed(jobs.queue.TicketWorker):\n"
            "    def execute_job(self, job, queue): os.kill(os.getpid(), 9)\n"
            "Killed(Redis.from_url(sys.argv[1])).take(['task=a'])\n"
        )
        tickets.enqueue("abc", "task=a")
        died = subprocess.run([sys.executable, "-c", program, redis_server], check=False)
        assert died.returncode == -9
        assert tickets.count("task=a") == 0
        [key] = keys_of(redis, "rq:job:*")
        assert 0 < redis.ttl(key) <= TICKET_TTL_S

    @pytest.mark.parametrize("requirements", [(), ("task=a",)])
    def test_taken_ticket_leaves_nothing_behind(self, redis: Redis, tickets: TicketQueue, requirements):
        worker = TicketWorker(redis)
        worker.take()
        before = keys_of(redis)
        tickets.enqueue("abc", *requirements)
        assert worker.take(requirements)
        assert keys_of(redis) == before | keys_of(redis, "rq:queues")


class TestLostTickets:
    def test_job_runs_although_its_ticket_died_with_a_worker(self, redis: Redis, tickets: TicketQueue):
        store = JobStore(redis)
        job = store.client.submit(a_submission()).job
        requirement = job.requirement or ""
        tickets.enqueue(job.id, requirement)
        redis.delete(f"rq:queue:{queue_name(requirement)}")
        claimed: list[str] = []

        def on_ticket() -> None:
            claim = store.holder.claim("a", LEASE_S)
            assert claim is not None
            claimed.append(claim.job.id)

        sweep(store, tickets)
        consume(redis, on_ticket, lambda: bool(claimed), lambda: [requirement])
        assert claimed == [job.id]

    def test_id_without_a_ticket_is_skipped(self, redis: Redis, tickets: TicketQueue):
        redis.rpush(f"rq:queue:{QUEUE_NAME}", "gone")
        taken: list[int] = []
        with consumer(redis, taken):
            tickets.enqueue("abc")
            wait_until(lambda: taken)
        assert len(taken) == 1

    def test_id_of_a_key_that_is_no_hash_is_skipped(self, redis: Redis, tickets: TicketQueue):
        redis.set("rq:job:foreign", "text")
        redis.rpush(f"rq:queue:{QUEUE_NAME}", "foreign", b"\xff")
        taken: list[int] = []
        with consumer(redis, taken):
            tickets.enqueue("abc")
            wait_until(lambda: taken)
        assert len(taken) == 1
        assert not redis.exists("rq:job:foreign")

    def test_ticket_with_a_broken_field_is_skipped(self, redis: Redis, tickets: TicketQueue):
        tickets.enqueue("abc")
        (key,) = keys_of(redis, "rq:job:*")
        redis.hset(key, "created_at", "yesterday")
        taken: list[int] = []
        with consumer(redis, taken):
            tickets.enqueue("abc")
            wait_until(lambda: taken)
        assert len(taken) == 1


class TestForgery:
    """Whoever can write to Redis cannot make a worker execute anything."""

    @pytest.fixture
    def forge(self, redis: Redis, tmp_path: Path):
        """Puts an RQ job of any kind on our queue, and says where it would leave a trace."""
        queue = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
        trace = tmp_path / "trace"

        def forge(function: str, **options: Any) -> Path:
            queue.enqueue_call(function, args=(str(trace),), **options)
            return trace

        return forge

    @pytest.mark.parametrize(
        ("function", "options"),
        [
            ("os.mkdir", {}),
            ("jobs.queue.ticket", {"on_success": Callback("tests.jobs.test_queue.leave_trace")}),
            ("jobs.queue.ticket", {"on_failure": Callback("tests.jobs.test_queue.leave_trace")}),
            ("jobs.queue.ticket", {"retry": Retry(max=3)}),
            ("jobs.queue.ticket", {"meta": {"a": "b"}}),
        ],
    )
    def test_foreign_rq_jobs_are_dropped(
        self, redis: Redis, tickets: TicketQueue, forge, caplog: pytest.LogCaptureFixture, function, options
    ):
        trace = forge(function, **options)
        taken: list[int] = []
        with caplog.at_level(logging.WARNING), consumer(redis, taken):
            tickets.enqueue("abc")
            wait_until(lambda: taken)
        assert "is not a ticket" in caplog.text
        assert len(taken) == 1
        assert not trace.exists()
        assert not keys_of(redis, "rq:job:*")

    @pytest.mark.parametrize("data", [b"", b"junk", b"\x80\x04K\x01.", b"x\x9c\x03\x00\x00\x00\x00\x01"])
    def test_data_that_is_no_json_is_dropped(self, redis: Redis, tickets: TicketQueue, data: bytes):
        tickets.enqueue("forged")
        [key] = keys_of(redis, "rq:job:*")
        redis.hset(key, "data", data)
        taken: list[int] = []
        with consumer(redis, taken):
            tickets.enqueue("abc")
            wait_until(lambda: taken)
        assert len(taken) == 1

    def test_method_call_is_dropped(self, redis: Redis, tickets: TicketQueue):
        queue = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
        job = queue.create_job("jobs.queue.ticket", args=("x",))
        job._instance = "an object"
        queue.enqueue_job(job)
        assert not TicketWorker(redis).take()
        assert not redis.exists(job.key)


def leave_trace(*_: object) -> None:
    """Would be called by RQ if forged callbacks were."""
    pytest.fail("a forged callback was called")
