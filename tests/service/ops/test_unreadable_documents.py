"""Each document that a release cannot read is counted at /metrics, by kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from jobs.errors import UnreadableRecord
from jobs.fleet import read_fleet
from jobs.queue import TicketQueue, consume
from jobs.registration import POOL_KEY, live_groups
from jobs.store.job_store import JobStore
from jobs.store.metrics import UnreadableKind
from jobs.store.outbox import Outbox
from service.keys.api_keys import KEYS, ApiKeys
from service.keys.sessions import PREFIX, Sessions
from service.presets.store import Presets
from service.webhooks.signing import ROTATIONS, Signer
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY

COUNTED_BY_WORKERS = {"spool file", "message"}  # `tests.worker.supervisor.test_app`

HOOK = "https://example.com/hook"


def read_a_job(redis: Redis, job_id: str) -> None:
    redis.hset(f"longcat:job:{job_id}", "order", '{"task": "poetry"}')
    with suppress(UnreadableRecord):
        JobStore(redis).client.get(job_id)


def read_a_job_field(redis: Redis, job_id: str) -> None:
    redis.hset(f"longcat:job:{job_id}", "metadata", "{")
    JobStore(redis).client.get(job_id)


def claim_a_missing_job(redis: Redis, job_id: str) -> None:
    redis.delete(f"longcat:job:{job_id}")
    assert JobStore(redis).holder.claim("a", 60) is None


def read_an_event(redis: Redis, job_id: str) -> None:
    redis.xadd(f"longcat:events:{job_id}", {"status": "running", "progress": '{"phase": "dream"}'})
    JobStore(redis).client.events(job_id)


def claim_a_checkpoint(redis: Redis, job_id: str) -> None:
    redis.hset(f"longcat:job:{job_id}", "checkpoint", "{")
    lease = JobStore(redis).holder.claim("a", 60)
    assert lease
    assert not lease.checkpoint


def take_a_delivery(redis: Redis, job_id: str) -> None:
    JobStore(redis).holder.claim("a", 60)
    redis.hset(f"longcat:job:{job_id}", "order", "{")
    assert Outbox(redis).take(60) is None


def read_an_attempt(redis: Redis, job_id: str) -> None:
    redis.rpush(f"longcat:delivery_log:{job_id}", '{"event": "paused", "at_ms": 1}')
    Outbox(redis).log(job_id)


def take_a_ticket(redis: Redis, job_id: str) -> None:
    redis.delete(*redis.keys("rq:*"))
    TicketQueue(redis).enqueue(job_id)
    (key,) = redis.keys("rq:job:*")
    redis.hset(key, "data", b"junk")
    TicketQueue(redis).enqueue(job_id)
    taken = Event()
    consume(redis, taken.set, taken.is_set)


def read_a_group_status(redis: Redis, job_id: str) -> None:
    redis.sadd("longcat:groups", "a")
    redis.set("longcat:group:a", "{", ex=60)
    live_groups(redis)
    redis.delete("longcat:groups")


def read_a_capability(redis: Redis, job_id: str) -> None:
    redis.set(POOL_KEY.format(CAPABILITY.pool), '{"tasks": []}')
    read_fleet(redis)
    set_only_pool(redis, CAPABILITY)


def list_an_api_key(redis: Redis, job_id: str) -> None:
    redis.hset(KEYS, "abc", '{"id": "abc"}')
    assert ApiKeys(redis).all() == []


def use_a_session(redis: Redis, job_id: str) -> None:
    sessions = Sessions(redis, ApiKeys(redis), 60)
    session_id = sessions.open("a key")
    (key,) = redis.keys(f"{PREFIX}*")
    redis.set(key, '{"key_id": 1}')
    assert sessions.authenticate(session_id) is None


def sign_with_a_webhook_secret(redis: Redis, job_id: str) -> None:
    redis.hset(ROTATIONS, "alice", "{")
    with pytest.raises(UnreadableRecord):
        Signer(redis, None).secret_of("alice")


def list_a_preset(redis: Redis, job_id: str) -> None:
    redis.hset("longcat:presets", "draft", '{"options": 1}')
    assert Presets(redis, "").all() == {}


READ: dict[str, Callable[[Redis, str], None]] = {
    "job": read_a_job,
    "job field": read_a_job_field,
    "missing job": claim_a_missing_job,
    "event": read_an_event,
    "checkpoint": claim_a_checkpoint,
    "delivery": take_a_delivery,
    "attempt": read_an_attempt,
    "ticket": take_a_ticket,
    "group status": read_a_group_status,
    "capability": read_a_capability,
    "api key": list_an_api_key,
    "session": use_a_session,
    "webhook secret": sign_with_a_webhook_secret,
    "preset": list_a_preset,
}


def unreadable(client: TestClient) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    (family,) = (each for each in families if each.name == "longcat_unreadable_records")
    return {sample.labels["kind"]: sample.value for sample in family.samples}


def test_every_kind_has_a_series_of_zero_at_first_and_a_test(client):
    assert unreadable(client) == dict.fromkeys(get_args(UnreadableKind), 0)
    assert READ.keys() | COUNTED_BY_WORKERS == {*get_args(UnreadableKind)}


@pytest.mark.parametrize("kind", READ)
def test_unreadable_document_is_counted_once_under_its_kind(client, order: Any, redis, kind):
    job_id = order(webhook_url=HOOK)["id"]
    READ[kind](redis, job_id)
    assert {name: value for name, value in unreadable(client).items() if value} == {kind: 1}
