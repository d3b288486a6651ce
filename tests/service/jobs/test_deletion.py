"""Nothing that a client sent remains in Redis after its job was deleted or has expired."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable

import pytest

from jobs.errors import OutOfMemory
from jobs.store.job_store import JobStore
from jobs.store.outbox import Attempt, Outbox
from tests.service.media import encoded, picture

MARK = "planted-7f3a"
WEEK_MS = 8 * 86_400_000


def stored(redis) -> dict[str, str]:
    """Return the content of all keys in Redis, with RQ's data decompressed."""
    read: dict[str, Callable] = {
        "string": redis.get,
        "hash": redis.hgetall,
        "list": lambda key: redis.lrange(key, 0, -1),
        "set": redis.smembers,
        "zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        "stream": redis.xrange,
    }
    found = {}
    for key in redis.scan_iter():
        value = read[redis.type(key).decode()](key)
        if isinstance(value, dict) and b"data" in value:
            value[b"data"] = zlib.decompress(value[b"data"])
        found[key.decode()] = str(value)
    return found


def keys_with(redis, text) -> list[str]:
    return [key for key, value in stored(redis).items() if text in key or text in value]


@pytest.fixture
def planted(client):
    """Create a job with the mark in every field that a client can set."""
    fields = {
        "prompt": f"a ball {MARK}",
        "negative_prompt": f"blurred {MARK}",
        "metadata": f'{{"{MARK}": "{MARK}"}}',
        "webhook_url": f"http://{MARK}.example.com/{MARK}?{MARK}",
    }
    files: dict[str, tuple[str | None, str | bytes]] = {name: (None, value) for name, value in fields.items()}
    files["image"] = (f"{MARK}.png", encoded(picture(), "PNG"))
    answer = client.post("/generate", files=files, headers={"Idempotency-Key": f"{MARK}-{'x' * 20}"})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def send_in_vain(redis) -> None:
    """Try each webhook that is due once."""
    outbox = Outbox(redis)
    while delivery := outbox.take(60):
        attempt = Attempt(event=delivery.event, attempt=delivery.attempt, outcome="failed", error=MARK)
        outbox.settle(delivery, attempt, 300)


def run_to(status, job_id, client, worker) -> None:
    """Bring a job to the given status."""
    if status == "cancelled":
        client.post(f"/jobs/{job_id}/cancel")
    if status in {"queued", "cancelled"}:
        return
    claim = worker.claim()
    worker.job_store.holder.save_checkpoint(claim, {"note": MARK})
    if status == "succeeded":
        worker.succeed(claim)
    if status == "failed":
        worker.job_store.holder.fail(claim, OutOfMemory(f"does not fit: {MARK}"), {})


class TestDeletedJob:
    @pytest.mark.parametrize("status", ["queued", "cancelled", "succeeded", "failed"])
    def test_nothing_that_the_client_sent_remains(self, client, worker, redis, planted, status):
        run_to(status, planted, client, worker)
        send_in_vain(redis)
        assert f"longcat:job:{planted}" in keys_with(redis, MARK)
        assert client.delete(f"/jobs/{planted}").status_code == 204
        assert keys_with(redis, MARK) == []

    def test_nothing_remains_of_a_running_job_once_its_holder_has_stopped(
        self, client, worker, redis, planted
    ):
        claim = worker.claim()
        send_in_vain(redis)
        assert client.delete(f"/jobs/{planted}").status_code == 202
        worker.job_store.holder.confirm_cancel(claim)
        assert keys_with(redis, MARK) == []

    def test_nothing_remains_if_a_webhook_was_being_sent(self, client, worker, redis, planted):
        worker.succeed(worker.claim())
        delivery = Outbox(redis).take(60)
        assert delivery is not None
        client.delete(f"/jobs/{planted}")
        attempt = Attempt(event=delivery.event, attempt=1, outcome="failed", error=MARK)
        Outbox(redis).settle(delivery, attempt, 300)
        assert keys_with(redis, MARK) == []

    def test_no_deliveries_remain_whatever_the_status(self, client, order, worker, redis):
        for _ in range(8):
            order(webhook_url="http://example.com/hook")
            worker.succeed(worker.claim())
            claimed = order(webhook_url="http://example.com/hook")["id"]
            claim = worker.claim()
            client.delete(f"/jobs/{claimed}")
            worker.job_store.holder.confirm_cancel(claim)
            order(webhook_url="http://example.com/hook")
            for job in client.get("/jobs").json()["jobs"]:
                client.delete(f"/jobs/{job['id']}")
        assert Outbox(redis).backlog().num_deliveries == 0
        assert keys_with(redis, "longcat:delivery") == []


@pytest.mark.parametrize("status", ["cancelled", "succeeded", "failed"])
def test_nothing_remains_of_an_expired_job(client, worker, redis, planted, status):
    run_to(status, planted, client, worker)
    send_in_vain(redis)
    later = int(redis.time()[0]) * 1000 + WEEK_MS
    assert JobStore(redis, clock=lambda: later).maintenance.sweep().expired == (planted,)
    assert keys_with(redis, MARK) == []


def test_content_sent_by_clients_is_not_logged(client, worker, redis, caplog, request):
    caplog.set_level(logging.DEBUG)
    run_to("failed", request.getfixturevalue("planted"), client, worker)
    send_in_vain(redis)
    ours = [
        record.getMessage() for record in caplog.records if record.name.split(".")[0] in {"jobs", "service"}
    ]
    assert any("queued a job" in message for message in ours)
    assert not [message for message in ours if MARK in message]
