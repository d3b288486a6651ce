"""A record that this release cannot read is passed over and counted. It stops nothing else."""

from __future__ import annotations

import pytest
from redis import Redis

from jobs.errors import UnreadableRecord
from jobs.maintenance import remove_files
from jobs.storage.folder import FolderStorage
from jobs.storage.keys import video_key
from jobs.store.metrics import counters
from jobs.store.outbox import Outbox
from tests.jobs.examples import LEASE_S, ExampleStore, a_result


def break_record(redis: Redis, job_id: str) -> None:
    redis.hset(f"longcat:job:{job_id}", "order", '{"task": "poetry"}')


def num_unreadable(redis: Redis, kind: str) -> float:
    return counters(redis).get(("unreadable_records", kind), 0)


def test_records_carry_a_schema_version(redis: Redis, store: ExampleStore):
    assert redis.hget(f"longcat:job:{store.submit().id}", "schema_version") == b"1"


def test_claim_fails_the_job_and_takes_the_next_one(redis: Redis, store: ExampleStore, caplog):
    broken, next_job = store.submit(), store.submit()
    break_record(redis, broken.id)
    assert store.claim().job.id == next_job.id
    assert redis.hget(f"longcat:job:{broken.id}", "status") == b"failed"
    assert store.client.counts() == {
        **dict.fromkeys(["queued", "uploading", "succeeded", "cancelled"], 0),
        **dict.fromkeys(["running", "failed"], 1),
    }
    assert store.holder.claim("a", LEASE_S) is None
    assert num_unreadable(redis, "job") == 1
    assert f"job {broken.id}: cannot read order" in caplog.text


def test_page_is_filled_with_the_jobs_after_it(redis: Redis, store: ExampleStore):
    jobs = [store.submit() for _ in range(4)]
    break_record(redis, jobs[2].id)
    assert [job.id for job in store.client.page(limit=2)] == [jobs[3].id, jobs[1].id]
    assert [job.id for job in store.client.page(limit=9)] == [jobs[3].id, jobs[1].id, jobs[0].id]
    assert [job.id for job in store.client.page(after=jobs[2].id)] == [jobs[1].id, jobs[0].id]


def test_single_job_raises_an_error_of_its_own(redis: Redis, store: ExampleStore):
    job = store.submit()
    break_record(redis, job.id)
    with pytest.raises(UnreadableRecord):
        store.client.get(job.id)
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
    broken, next_job = store.client.page(newest_first=False)
    break_record(redis, broken.id)
    taken = outbox.take(60)
    assert taken is not None
    assert taken.job.id == next_job.id
    assert [attempt.outcome for attempt in outbox.log(broken.id)] == ["given_up"]
    assert outbox.backlog().num_deliveries == 1


def test_attempts_that_cannot_be_read_are_passed_over(redis: Redis, store: ExampleStore):
    redis.rpush("longcat:delivery_log:abc", '{"event": "paused", "at_ms": 1}')
    assert Outbox(redis, store.clock).log("abc") == []


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
