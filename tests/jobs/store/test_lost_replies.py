"""A client repeats a command whose reply was lost, so every call is safe to repeat."""

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
from jobs.record import Batch, Progress
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from tests.jobs.examples import LEASE_S, ExampleStore, a_result, a_submission, keys_of


class LossyConnections:
    """Connections that lose the next `to_lose` replies."""

    def __init__(self) -> None:
        self.to_lose = 0
        self.lost = 0

    def pool(self, url: str) -> ConnectionPool:
        connections = self
        kind = parse_url(url).get("connection_class", ConnectionPool().connection_class)

        class Lossy(kind):  # type: ignore[misc, valid-type]
            def read_response(self, *args: Any, **options: Any) -> Any:
                reply = super().read_response(*args, **options)
                if connections.to_lose:
                    connections.to_lose -= 1
                    connections.lost += 1
                    self.disconnect()
                    raise RedisConnectionError("the reply was lost")
                return reply

        pool = connect(url, deadline_s=60).connection_pool
        pool.connection_class = Lossy
        return pool


@pytest.fixture
def connections() -> LossyConnections:
    return LossyConnections()


@pytest.fixture
def lossy(redis: Redis, redis_server: str, connections: LossyConnections) -> Iterator[Redis]:
    """A client of the emptied Redis on that connections."""
    with Redis(connection_pool=connections.pool(redis_server)) as client:
        yield client


CALLS: dict[str, Callable[[JobStore, Lease], object]] = {
    "beat": lambda store, claim: store.holder.renew_lease(claim, Progress(phase="decode")),
    "remember": lambda store, claim: store.holder.save_checkpoint(claim, {"step": 3}),
    "begin_upload": lambda store, claim: store.holder.begin_upload(claim),
    "succeed": lambda store, claim: store.holder.succeed(claim, a_result(claim), {"decode": 1.0}),
    "fail": lambda store, claim: store.holder.fail(claim, GenerationFailed("no"), {}),
    "confirm_cancel": lambda store, claim: store.holder.confirm_cancel(claim),
    "drain": lambda store, claim: store.holder.requeue(claim, crashed=False),
    "crash": lambda store, claim: store.holder.requeue(claim, crashed=True),
    "cancel": lambda store, claim: store.client.cancel(claim.job.id),
    "delete": lambda store, claim: store.client.delete(claim.job.id),
    "cancel_queued": lambda store, claim: store.client.cancel("waiting"),
    "delete_queued": lambda store, claim: store.client.delete("waiting"),
    "submit": lambda store, claim: store.client.submit(a_submission(id="new")).job,
    "submit several": lambda store, claim: (
        store.client.submit(
            *(a_submission(id=name, batch=Batch(id="c", job_ids=("a", "b"))) for name in ("a", "b"))
        ).job
    ),
    "cancel several": lambda store, claim: store.client.cancel_batch("several"),
    "reserve": lambda store, claim: store.client.reserve("new"),
    "sweep": lambda store, claim: store.maintenance.sweep(),
}


def outcome(
    redis: Redis, call: Callable[[JobStore, Lease], object], losing: Callable[[], None]
) -> tuple[Any, Any]:
    """Return the reply of a call, and the content of Redis after it."""
    redis.flushall()
    store = ExampleStore(redis)
    claim = store.start(id="held")
    store.submit(id="waiting", batch=Batch(id="several", job_ids=("waiting",)))
    losing()
    answer = call(store, claim)
    of_calls = keys_of(redis, "longcat:claims:*") | keys_of(redis, "longcat:deletes:*")
    kept = keys_of(redis) - keys_of(redis, "longcat:events:*") - of_calls
    return answer, {key: content(redis, key) for key in sorted(kept)}


def content(redis: Redis, key: str) -> Any:
    match redis.type(key):
        case b"hash":
            fields = redis.hgetall(key)
            return {name: fields[name] for name in fields if name not in {b"claim_token", b"token"}}
        case b"zset":
            return redis.zrange(key, 0, -1, withscores=True)
        case b"set":
            return redis.smembers(key)
        case b"list":
            return redis.lrange(key, 0, -1)
        case b"string":
            return redis.get(key)
    raise AssertionError(key)


@pytest.mark.parametrize("name", CALLS)
def test_call_with_a_lost_reply_has_the_same_effect_and_reply(
    lossy: Redis, connections: LossyConnections, name: str
):
    undisturbed = outcome(lossy, CALLS[name], lambda: None)

    def lose_two() -> None:
        connections.to_lose = 2

    assert outcome(lossy, CALLS[name], lose_two) == undisturbed
    assert connections.lost == 2


def test_claim_with_a_lost_reply_takes_one_job(lossy: Redis, connections: LossyConnections):
    store = JobStore(lossy)
    for name in ("first", "second"):
        store.client.submit(a_submission(id=name))
    connections.to_lose = 2
    claim = store.holder.claim("a", LEASE_S)
    assert connections.lost == 2
    assert claim is not None
    assert (claim.job.id, claim.fence) == ("first", 1)
    assert store.holder.renew_lease(claim) is None
    assert store.client.counts()["running"] == 1


def test_repeated_claim_after_the_lease_gets_no_job_of_the_next_holder(redis: Redis):
    store = ExampleStore(redis)
    store.submit(id="only")
    run = store.holder._run
    ask = {"group": "a", "lease_ms": 30_000, "token": "asked twice", "order_version": 2, "reader": "1.2"}
    run("claim", **ask)
    store.lose_lease()
    holder = store.claim("b")
    assert run("claim", **ask) is None
    assert store.holder.renew_lease(holder) is None


def test_repeated_claim_after_a_requeue_claims_the_job_again(redis: Redis):
    store = ExampleStore(redis)
    store.submit(id="only")
    run = store.holder._run
    ask = {"group": "a", "lease_ms": 30_000, "token": "asked twice", "order_version": 2, "reader": "1.2"}
    run("claim", **ask)
    run("requeue", id="only", fence=1, crashed=False)
    run("claim", **ask)
    assert store.client.get("only").status == "running"


def test_repeated_begin_of_an_upload_is_one_event(store: ExampleStore):
    claim = store.start()
    store.holder.begin_upload(claim)
    store.holder.begin_upload(claim)
    assert [event.status for event in store.client.events(claim.job.id)] == [
        "queued",
        "running",
        "uploading",
    ]


def test_ticket_with_a_lost_reply_is_at_most_one_too_many(lossy: Redis, connections: LossyConnections):
    tickets = TicketQueue(lossy)
    tickets.enqueue("warm up")
    connections.to_lose = 1
    tickets.enqueue("abc")
    assert 2 <= tickets.count() <= 3


def test_store_works_after_redis_lost_its_scripts(redis: Redis, store: ExampleStore):
    store.client.submit(a_submission(id="abc"))
    redis.script_flush()
    assert store.client.get("abc").status == "queued"


def test_store_works_after_redis_lost_its_data(redis: Redis, store: ExampleStore):
    claim = store.start(id="abc")
    redis.flushall()
    assert store.holder.renew_lease(claim) == "lease_lost"
    assert store.submit(id="def").status == "queued"
    assert store.claim().job.id == "def"
