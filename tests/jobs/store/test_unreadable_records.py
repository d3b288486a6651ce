"""A record that this release cannot read is passed over and counted. It stops nothing else."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from redis import Redis

from jobs.errors import LeaseLost, LimitReached, UnreadableRecord
from jobs.maintenance import remove_files
from jobs.order import SCHEMA_VERSION as ORDER_VERSION
from jobs.record import Job, JobError, Progress
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import video_key
from jobs.store.metrics import counters, num_set_aside
from jobs.store.outbox import Attempt, Backlog, Outbox
from jobs.store.queue_depths import queue_depths
from jobs.store.quotas import Quotas
from jobs.store.scripts import FOLDER, fields_of
from tests.jobs.examples import LEASE_S, ORDER, ExampleStore, a_result


def break_record(redis: Redis, job_id: str) -> None:
    redis.hset(f"longcat:job:{job_id}", "order", '{"task": "poetry"}')


def num_unreadable(redis: Redis, kind: str) -> float:
    return counters(redis).get(("unreadable_records", kind), 0)


def test_records_carry_a_schema_version(redis: Redis, store: ExampleStore):
    assert redis.hget(f"longcat:job:{store.submit().id}", "schema_version") == b"3"


def mend_record(redis: Redis, job_id: str) -> None:
    redis.hset(f"longcat:job:{job_id}", "order", ORDER.model_dump_json())


def order_of_a_later_release(redis: Redis, job_id: str) -> None:
    """Change a queued job as if a later release had submitted it."""
    later = json.loads(ORDER.model_dump_json()) | {"schema_version": ORDER_VERSION + 1}
    redis.hset(
        f"longcat:job:{job_id}", mapping={"order": json.dumps(later), "order_version": ORDER_VERSION + 1}
    )


def claimed_by_a_later_release(store: ExampleStore) -> str | None:
    """Claim the next job as a worker of the next release does, and return its id."""
    reply = store.holder._run(
        "claim",
        group="later",
        lease_ms=1000 * LEASE_S,
        token="later",
        order_version=ORDER_VERSION + 1,
        reader=f"1.{ORDER_VERSION + 1}",
    )
    return fields_of(reply)["id"] if reply else None


def test_claim_sets_an_unreadable_job_aside_and_takes_the_next_one(redis: Redis, store: ExampleStore, caplog):
    broken, next_job = store.submit(), store.submit()
    break_record(redis, broken.id)
    assert store.claim().job.id == next_job.id
    assert store.client.counts() == {
        **dict.fromkeys(["uploading", "succeeded", "cancelled", "failed"], 0),
        **dict.fromkeys(["running", "queued"], 1),
    }
    assert store.holder.claim("a", LEASE_S) is None
    assert (num_unreadable(redis, "job"), num_set_aside(redis)) == (1, 1)
    assert f"job {broken.id}: cannot read order" in caplog.text


def test_job_that_was_set_aside_has_used_no_attempt_and_not_started(redis: Redis, store: ExampleStore):
    broken = store.submit()
    break_record(redis, broken.id)
    assert store.holder.claim("a", LEASE_S) is None
    mend_record(redis, broken.id)
    job = store.client.get(broken.id)
    assert (job.status, job.attempt, job.started_at, job.group) == ("queued", 0, None, None)


def test_job_that_was_set_aside_waits_no_longer_than_it_may(redis: Redis, store: ExampleStore):
    broken = store.submit(max_queue_s=60)
    break_record(redis, broken.id)
    assert store.holder.claim("a", LEASE_S) is None
    store.clock.advance(61)
    assert store.maintenance.sweep().ended == (broken.id,)
    assert num_set_aside(redis) == 0


@pytest.mark.parametrize("spoil", [break_record, order_of_a_later_release])
def test_later_release_claims_what_this_one_cannot_read(redis: Redis, store: ExampleStore, spoil):
    job = store.submit()
    spoil(redis, job.id)
    assert store.holder.claim("a", LEASE_S) is None
    assert claimed_by_a_later_release(store) == job.id
    assert num_set_aside(redis) == 0
    mend_record(redis, job.id)
    assert store.client.get(job.id).attempt == 1


def test_order_of_a_later_release_is_never_started(redis: Redis, store: ExampleStore):
    job = store.submit(webhook_url="https://example.com/hook", max_queue_s=60)
    order_of_a_later_release(redis, job.id)
    assert store.holder.claim("a", LEASE_S) is None
    assert [event.status for event in store.client.events(job.id)] == ["queued"]
    assert Outbox(redis, store.clock).backlog().num_deliveries == 0
    store.clock.advance(61)
    assert store.maintenance.sweep().ended == (job.id,)


def test_order_of_a_later_release_does_not_hold_up_those_behind_it(redis: Redis, store: ExampleStore):
    later, next_job = store.submit(owner="alice"), store.submit(owner="alice")
    order_of_a_later_release(redis, later.id)
    assert store.claim().job.id == next_job.id


def test_job_that_was_set_aside_can_be_cancelled(redis: Redis, store: ExampleStore):
    job = store.submit()
    break_record(redis, job.id)
    assert store.holder.claim("a", LEASE_S) is None
    with pytest.raises(UnreadableRecord):
        store.client.cancel(job.id)
    mend_record(redis, job.id)
    assert store.client.get(job.id).status == "cancelled"
    assert num_set_aside(redis) == 0


def test_all_jobs_that_were_set_aside_need_one_ticket(redis: Redis, store: ExampleStore):
    for _ in range(3):
        break_record(redis, store.submit().id)
    assert sum(store.maintenance.num_tickets_needed().values()) == 3
    assert store.holder.claim("a", LEASE_S) is None
    assert sum(store.maintenance.num_tickets_needed().values()) == 1
    store.submit()
    assert sum(store.maintenance.num_tickets_needed().values()) == 2


@pytest.mark.parametrize("owner", ["", "alice"])
def test_queued_job_without_a_record_does_not_stop_the_queue(redis: Redis, store: ExampleStore, owner: str):
    lost, lost_too, next_job = (store.submit(owner=owner) for _ in range(3))
    redis.delete(f"longcat:job:{lost.id}")
    redis.set(f"longcat:job:{lost_too.id}", "no hash")
    queue_depths(redis, store.clock)
    assert store.claim().job.id == next_job.id
    assert store.holder.claim("a", LEASE_S) is None
    assert [job.id for job in store.client.for_owner(owner).list_jobs()] == [next_job.id]
    assert store.client.counts()["queued"] == 0
    assert num_unreadable(redis, "missing job") == 2


def test_requeued_job_without_a_record_does_not_stop_the_queue(redis: Redis, store: ExampleStore):
    lost = store.start()
    store.holder.requeue(lost, crashed=False)
    redis.delete(f"longcat:job:{lost.job.id}")
    next_job = store.submit(priority="low")
    assert store.claim().job.id == next_job.id


def test_leased_job_without_a_record_does_not_stop_the_sweep(redis: Redis, store: ExampleStore):
    lost, other = store.start(), store.start()
    redis.delete(f"longcat:job:{lost.job.id}")
    store.lose_lease()
    assert store.client.get(other.job.id).status == "queued"
    assert store.client.counts()["running"] == 0
    assert redis.zcard("longcat:leases") == 0


@pytest.mark.parametrize("is_first", [True, False])
def test_running_job_without_a_record_does_not_count_for_the_limit_of_its_owner(redis: Redis, is_first: bool):
    """One that is not the first running job of its owner is found when it is."""
    store = ExampleStore(redis, quotas=Quotas(owner_running_jobs=2))
    running = [store.start(owner="alice") for _ in range(2)]
    lost, kept = running if is_first else reversed(running)
    waiting = [store.submit(owner="alice") for _ in range(2)]
    redis.delete(f"longcat:job:{lost.job.id}")
    (depth,) = queue_depths(redis, store.clock)
    assert depth.num_held == (0 if is_first else 2)
    store.client.cancel(kept.job.id)
    store.holder.confirm_cancel(kept)
    assert [store.claim().job.id for _ in range(2)] == [job.id for job in waiting]


def test_jobs_held_back_by_a_running_job_whose_record_is_gone_start_within_seconds(redis: Redis):
    store = ExampleStore(redis, quotas=Quotas(owner_running_jobs=1))
    lost, waiting = store.start(owner="alice"), store.submit(owner="alice")
    assert store.holder.claim("a", LEASE_S) is None
    redis.delete(f"longcat:job:{lost.job.id}")
    store.maintenance.sweep()
    assert store.holder.claim("a", LEASE_S) is None
    store.clock.advance(5)
    store.maintenance.sweep()
    assert store.claim().job.id == waiting.id


def test_queued_jobs_without_a_record_do_not_count_for_the_limit_of_their_owner(redis: Redis):
    store = ExampleStore(redis, quotas=Quotas(owner_queued_jobs=2))
    lost, _ = store.submit(owner="alice"), store.submit(owner="alice")
    with pytest.raises(LimitReached):
        store.submit(owner="alice")
    redis.delete(f"longcat:job:{lost.id}")
    store.submit(owner="alice")
    with pytest.raises(LimitReached):
        store.submit(owner="alice")


def test_expiring_and_overdue_jobs_without_a_record_do_not_stop_the_sweep(redis: Redis, store: ExampleStore):
    ended, overdue = store.submit(), store.submit(max_queue_s=5)
    store.client.cancel(ended.id)
    for job in (ended, overdue):
        redis.delete(f"longcat:job:{job.id}")
    last = store.submit(max_queue_s=5)
    store.clock.advance(8 * 86400)
    assert store.maintenance.sweep().ended == (last.id,)
    assert redis.zcard("longcat:queue_deadlines") == 0
    assert redis.zscore("longcat:expiring", ended.id) is None


def fields_that_are_read() -> list[str]:
    """Return the fields of records that scripts name, and those that `Job` has."""
    lua = re.sub(r"--.*", "", "".join(path.read_text() for path in FOLDER.rglob("*.lua")))
    named = {*re.findall(r"\b(?:job|other)\.(\w+)", lua)}
    for names in re.findall(r"\bread_fields\(\s*id,([^)]*)\)", lua):
        named |= {*re.findall(r"'(\w+)'", names)}
    of_job = {re.sub("_at$", "_ms", name) for name in Job.model_fields if name != "unread"}
    return sorted(named | of_job)


VALUES = [None, "", "{", "-1.5e3", "9" * 40]


@pytest.mark.parametrize("name", fields_that_are_read())
def test_broken_field_costs_only_its_own_job(redis: Redis, name: str):
    store = ExampleStore(redis, quotas=Quotas(owner_running_jobs=99, total_running_jobs=99))
    options: dict[str, Any] = {"webhook_url": "https://example.com/hook", "max_queue_s": 5, "max_run_s": 5}
    options |= {"gpu_hour_price": Decimal(2), "currency": "EUR", "ageing_s": 60, "deadline_s": 3600}
    running = [store.start(**options) for _ in VALUES]
    queued = [store.submit(**options) for _ in VALUES]
    sound = store.submit(owner="bob")
    for held, job, value in zip(running, queued, VALUES, strict=True):
        for job_id in (held.job.id, job.id):
            if value is None:
                redis.hdel(f"longcat:job:{job_id}", name)
            else:
                redis.hset(f"longcat:job:{job_id}", name, value)
    for job in (sound, *queued):
        store.client.estimate(job.id)
    queue_depths(redis, store.clock)
    store.client.list_jobs()
    for held in running:
        with suppress(LeaseLost):
            store.holder.renew_lease(held, Progress(phase="denoise"), preempt_after_s=0)
    outbox = Outbox(redis, store.clock)
    while delivery := outbox.take(60):
        outbox.settle(delivery, Attempt(event=delivery.event, attempt=1, outcome="delivered"), None)
    claimed = []
    while left := store.holder.claim("b", LEASE_S):
        claimed.append(left.job.id)
        store.holder.fail(left, JobError(code="internal", message="staged"), {})
    assert sound.id in claimed
    for _ in range(5):  # often enough that leases run out
        store.clock.advance(LEASE_S / 4)
        store.maintenance.sweep()
    store.clock.advance(9 * 86400)
    store.maintenance.sweep()
    assert not redis.exists(f"longcat:job:{sound.id}")


def test_page_is_filled_with_the_jobs_after_it(redis: Redis, store: ExampleStore):
    jobs = [store.submit() for _ in range(4)]
    break_record(redis, jobs[2].id)
    assert [job.id for job in store.client.list_jobs(limit=2)] == [jobs[3].id, jobs[1].id]
    assert [job.id for job in store.client.list_jobs(limit=9)] == [jobs[3].id, jobs[1].id, jobs[0].id]
    assert [job.id for job in store.client.list_jobs(after=jobs[2].id)] == [jobs[1].id, jobs[0].id]


def test_single_job_raises_an_error_of_its_own(redis: Redis, store: ExampleStore, caplog):
    job = store.submit()
    break_record(redis, job.id)
    with pytest.raises(UnreadableRecord):
        store.client.get(job.id)
    assert num_unreadable(redis, "job") == 1
    assert f"job {job.id}: cannot read order" in caplog.text
    assert store.client.delete(job.id)


def test_events_that_cannot_be_read_are_passed_over(redis: Redis, store: ExampleStore):
    job = store.submit()
    redis.xadd(f"longcat:events:{job.id}", {"status": "running", "progress": '{"phase": "dream"}'})
    store.claim()
    assert [event.status for event in store.client.events(job.id)] == ["queued", "running"]
    assert num_unreadable(redis, "event") == 1


def test_webhook_is_given_up_and_the_next_one_is_taken(redis: Redis, store: ExampleStore):
    outbox = Outbox(redis, store.clock)
    for _ in range(2):
        store.start(webhook_url="https://example.com/hook")
        store.clock.advance(1)
    broken, next_job = store.client.list_jobs(newest_first=False)
    break_record(redis, broken.id)
    taken = outbox.take(60)
    assert taken is not None
    assert taken.job.id == next_job.id
    assert [attempt.outcome for attempt in outbox.log(broken.id)] == ["given_up"]
    assert outbox.backlog().num_deliveries == 1
    assert num_unreadable(redis, "delivery") == 1


def test_webhooks_that_are_given_up_do_not_pause_their_host(redis: Redis, store: ExampleStore):
    outbox = Outbox(redis, store.clock)
    for _ in range(9):  # more than failures in a row for which a host is paused
        break_record(redis, store.start(webhook_url="https://example.com/hook").job.id)
        assert outbox.take(60) is None
    assert outbox.backlog() == Backlog(num_deliveries=0, oldest_due_s=0.0, num_paused_hosts=0)


def test_attempts_that_cannot_be_read_are_passed_over(redis: Redis, store: ExampleStore):
    timeless = {"event": "started", "attempt": 1, "outcome": "delivered"}
    redis.rpush("longcat:delivery_log:abc", '{"event": "paused", "at_ms": 1}', json.dumps(timeless))
    assert Outbox(redis, store.clock).log("abc") == [Attempt(event="started", attempt=1, outcome="delivered")]
    assert num_unreadable(redis, "attempt") == 1


@pytest.mark.parametrize("damaged", ["{", "[]"])
def test_job_with_an_unreadable_checkpoint_begins_anew(
    redis: Redis, store: ExampleStore, caplog: pytest.LogCaptureFixture, damaged: str
):
    lease = store.start()
    store.holder.save_checkpoint(lease, {"step": 1})
    store.holder.requeue(lease, crashed=False)
    redis.hset(f"longcat:job:{lease.job.id}", "checkpoint", damaged)
    assert store.claim().checkpoint is None
    assert num_unreadable(redis, "checkpoint") == 1
    assert f"job {lease.job.id}" in caplog.text


def test_field_that_has_its_default_is_named_and_counted(
    redis: Redis, store: ExampleStore, caplog: pytest.LogCaptureFixture
):
    job = store.submit()
    redis.hset(f"longcat:job:{job.id}", "metadata", "{")
    assert store.client.get(job.id).metadata == {}
    assert num_unreadable(redis, "job field") == 1
    assert f"job {job.id}: cannot read metadata" in caplog.text


def test_files_are_kept_until_the_record_expires(
    redis: Redis, store: ExampleStore, storage: FolderStorage, tmp_path
):
    claim = store.start()
    file = tmp_path / "file"
    file.write_bytes(b"bytes")
    key = video_key(claim.job.id, 1)
    storage.put(key, file, "video/mp4")
    store.holder.succeed(claim, a_result(claim), {})
    break_record(redis, claim.job.id)
    assert remove_files(store, storage) == 1
    assert list(storage.keys("jobs/")) == [key]
    store.clock.advance(7 * 86400)
    store.maintenance.sweep()
    remove_files(store, storage)
    assert list(storage.keys("jobs/")) == []


def test_records_without_newer_fields_do_not_stop_the_sweep(redis: Redis, store: ExampleStore):
    running, late = store.start(), store.submit(max_queue_s=5)
    for job_id in (running.job.id, late.id):
        redis.hdel(f"longcat:job:{job_id}", "run_ms", "work_units")
    store.clock.advance(6)
    assert store.maintenance.sweep().ended == (late.id,)
    store.lose_lease()
    assert store.client.get(running.job.id).status == "queued"


def test_running_job_without_newer_fields_does_not_stop_estimates(redis: Redis, store: ExampleStore):
    running, queued = store.start(), store.submit()
    redis.hdel(f"longcat:job:{running.job.id}", "work_units")
    estimate = store.client.estimate(queued.id)
    assert estimate
    assert estimate.position == 1
