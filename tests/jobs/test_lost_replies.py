"""A reply that is lost makes the client send the command again: all transitions bear being done twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis
from redis.connection import ConnectionPool, parse_url
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.connect import connect
from jobs.errors import GenerationFailed
from jobs.queue import TicketQueue
from jobs.record import Progress
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from tests.jobs.examples import LEASE_S, Clock, Desk, a_result, a_submission, keys_of


class LossyLine:
    """Lets commands through and loses so many replies to them."""

    def __init__(self) -> None:
        self.to_lose = 0
        self.lost = 0

    def pool(self, url: str) -> ConnectionPool:
        line = self
        kind = parse_url(url).get("connection_class", ConnectionPool().connection_class)

        class Lossy(kind):  # type: ignore[misc, valid-type]
            def read_response(self, *args: Any, **options: Any) -> Any:
                reply = super().read_response(*args, **options)
                if line.to_lose:
                    line.to_lose -= 1
                    line.lost += 1
                    self.disconnect()
                    raise RedisConnectionError("the reply was lost")
                return reply

        pool = connect(url, patience_s=1).connection_pool
        pool.connection_class = Lossy
        return pool


@pytest.fixture
def line() -> LossyLine:
    return LossyLine()


@pytest.fixture
def lossy(redis: Redis, redis_server: str, line: LossyLine) -> Iterator[Redis]:
    """A client of the emptied Redis on that line."""
    with Redis(connection_pool=line.pool(redis_server)) as client:
        yield client


CALLS: dict[str, Callable[[JobStore, Lease], object]] = {
    "beat": lambda job_store, claim: job_store.holder.renew_lease(claim, Progress(phase="decode")),
    "remember": lambda job_store, claim: job_store.holder.save_checkpoint(claim, {"step": 3}),
    "begin_upload": lambda job_store, claim: job_store.holder.begin_upload(claim),
    "succeed": lambda job_store, claim: job_store.holder.succeed(claim, a_result(claim), {"decode": 1.0}),
    "fail": lambda job_store, claim: job_store.holder.fail(claim, GenerationFailed("no"), {}),
    "confirm_cancel": lambda job_store, claim: job_store.holder.confirm_cancel(claim),
    "drain": lambda job_store, claim: job_store.holder.requeue(claim, crashed=False),
    "crash": lambda job_store, claim: job_store.holder.requeue(claim, crashed=True),
    "cancel": lambda job_store, claim: job_store.client.cancel(claim.job.id),
    "delete": lambda job_store, claim: job_store.client.delete(claim.job.id),
    "cancel_queued": lambda job_store, claim: job_store.client.cancel("waiting"),
    "delete_queued": lambda job_store, claim: job_store.client.delete("waiting"),
    "submit": lambda job_store, claim: job_store.client.submit(a_submission(id="new")),
    "reserve": lambda job_store, claim: job_store.client.reserve("new"),
    "sweep": lambda job_store, claim: job_store.maintenance.sweep(),
}


def outcome(
    redis: Redis, call: Callable[[JobStore, Lease], object], losing: Callable[[], None]
) -> tuple[Any, Any]:
    """What a call answers, and what Redis holds after it."""
    redis.flushall()
    desk = Desk(JobStore(redis, clock=Clock()), Clock())
    claim = desk.start(id="held")
    desk.submit(id="waiting")
    losing()
    answer = call(desk.job_store, claim)
    of_calls = keys_of(redis, "longcat:claims:*") | keys_of(redis, "longcat:deletes:*")
    kept = keys_of(redis) - keys_of(redis, "longcat:events:*") - of_calls
    return answer, {key: content(redis, key) for key in sorted(kept)}


def content(redis: Redis, key: str) -> Any:
    match redis.type(key):
        case b"hash":
            fields = redis.hgetall(key)
            return {name: value for name, value in fields.items() if name != b"token"}
        case b"zset":
            return redis.zrange(key, 0, -1, withscores=True)
        case b"list":
            return redis.lrange(key, 0, -1)
        case b"string":
            return redis.get(key)
    raise AssertionError(key)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_whose_reply_was_lost_answers_and_does_the_same(lossy: Redis, line: LossyLine, name: str):
    undisturbed = outcome(lossy, CALLS[name], lambda: None)

    def lose_two() -> None:
        line.to_lose = 2

    assert outcome(lossy, CALLS[name], lose_two) == undisturbed
    assert line.lost == 2


def test_a_claim_whose_reply_was_lost_takes_one_job(lossy: Redis, line: LossyLine):
    job_store = JobStore(lossy)
    for name in ("first", "second"):
        job_store.client.submit(a_submission(id=name))
    line.to_lose = 2
    claim = job_store.holder.claim("a", LEASE_S)
    assert line.lost == 2
    assert claim is not None
    assert (claim.job.id, claim.attempt) == ("first", 1)
    assert job_store.holder.renew_lease(claim) is None
    assert job_store.client.counts()["running"] == 1


def test_a_claim_asked_for_again_after_its_lease_ran_out_is_not_the_next_holders(redis: Redis):
    desk = Desk.open(redis)
    desk.submit(id="only")
    run = desk.job_store.holder._run
    ask = {"group": "a", "lease_ms": 30_000, "token": "asked twice"}
    run("claim", **ask)
    desk.lose_lease()
    holder = desk.claim("b")
    assert run("claim", **ask) is None
    assert desk.job_store.holder.renew_lease(holder) is None


def test_a_claim_asked_for_again_after_its_job_went_back_takes_it_anew(redis: Redis):
    desk = Desk.open(redis)
    desk.submit(id="only")
    run = desk.job_store.holder._run
    ask = {"group": "a", "lease_ms": 30_000, "token": "asked twice"}
    run("claim", **ask)
    run("requeue", id="only", fence=1, crashed=False)
    run("claim", **ask)
    assert desk.job_store.client.get("only").status == "running"


def test_an_upload_that_began_twice_is_told_once(desk: Desk):
    claim = desk.start()
    desk.job_store.holder.begin_upload(claim)
    desk.job_store.holder.begin_upload(claim)
    assert [event.status for event in desk.job_store.client.events(claim.job.id)] == [
        "queued",
        "running",
        "uploading",
    ]


def test_a_ticket_whose_reply_was_lost_is_at_most_one_too_many(lossy: Redis, line: LossyLine):
    tickets = TicketQueue(lossy)
    tickets.deliver("warm up")
    line.to_lose = 1
    tickets.deliver("abc")
    assert 2 <= tickets.count() <= 3


def test_redis_losing_its_scripts_is_not_noticed(redis: Redis, job_store: JobStore):
    job_store.client.submit(a_submission(id="abc"))
    redis.script_flush()
    assert job_store.client.get("abc").status == "queued"


def test_redis_losing_everything_leaves_a_ledger_that_works(redis: Redis, desk: Desk):
    claim = desk.start(id="abc")
    redis.flushall()
    assert desk.job_store.holder.renew_lease(claim) == "lease_lost"
    assert desk.submit(id="def").status == "queued"
    assert desk.claim().job.id == "def"
