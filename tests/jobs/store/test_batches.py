"""Jobs of a batch are submitted all or none, count one by one, and leave nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis import Redis

from jobs.errors import JobNotFound, KeyReused, LimitReached
from jobs.record import Batch, Status
from jobs.store.idempotency import IdempotencyKeys
from jobs.store.listing import JobFilter
from jobs.store.quotas import Quotas
from jobs.store.submission import Submission
from tests.jobs.examples import ExampleStore, a_result, a_submission, keys_of
from tests.jobs.store.test_quotas import with_input


def submissions(*names: str, batch: str = "batch", **fields: object) -> list[Submission]:
    return [a_submission(id=name, batch=Batch(id=batch, job_ids=names), **fields) for name in names]


def names_in(store: ExampleStore, batch: str, *statuses: Status) -> list[str]:
    return [job.id for job in store.client.page(JobFilter(statuses, batch=batch), 10).jobs]


def test_jobs_are_queued_in_their_order(redis: Redis):
    store = ExampleStore(redis)
    submitted = store.client.submit(*submissions("a", "b", "c"))
    assert (submitted.job.id, submitted.is_new) == ("a", True)
    assert [store.position(name) for name in ("a", "b", "c")] == [1, 2, 3]
    assert store.client.get("c").batch == Batch(id="batch", job_ids=("a", "b", "c"))


def test_repeated_submission_changes_nothing(redis: Redis):
    store = ExampleStore(redis)
    store.client.submit(*submissions("a", "b"))
    before = keys_of(redis)
    again = store.client.submit(*submissions("a", "other", batch="another"))
    assert (again.job.batch, again.is_new) == (Batch(id="batch", job_ids=("a", "b")), False)
    assert keys_of(redis) == before


def test_batch_with_a_deleted_job_is_not_submitted(redis: Redis):
    store = ExampleStore(redis)
    store.submit(id="b")
    store.client.delete("b")
    with pytest.raises(JobNotFound):
        store.client.submit(*submissions("a", "b"))
    with pytest.raises(JobNotFound):
        store.client.get("a")


@pytest.mark.parametrize(
    ("quotas", "limit"),
    [
        (Quotas(owner_queued_jobs=2), "owner_queued_jobs"),
        (Quotas(total_queued_jobs=2), "total_queued_jobs"),
        (Quotas(owner_stored_jobs=2), "owner_stored_jobs"),
        (Quotas(owner_input_bytes_per_day=29), "owner_input_bytes_per_day"),
        (Quotas(owner_gpu_s_per_day=29), "owner_gpu_s_per_day"),
    ],
)
def test_limits_count_all_jobs(redis: Redis, quotas: Quotas, limit: str):
    store = ExampleStore(redis, quotas=quotas)
    (example,) = submissions("example")
    work_units = int(str(example.record()["work_units"]))
    redis.hset("longcat:gpu_time", mapping={"work_units": work_units, "gpu_ms": 10_000})  # 10 s for each
    before = keys_of(redis)
    with pytest.raises(LimitReached) as refused:
        store.client.submit(*submissions("a", "b", "c", order=with_input(10)))
    assert refused.value.limit == limit
    assert keys_of(redis) == before
    store.client.submit(*submissions("a", "b", order=with_input(9)))
    assert names_in(store, "batch") == ["b", "a"]


class TestIdempotencyKey:
    @pytest.fixture
    def keys(self, redis: Redis) -> IdempotencyKeys:
        return IdempotencyKeys(redis)

    def submit(self, store: ExampleStore, keys: IdempotencyKeys) -> str:
        """Submit a batch of three with a key, and return the id of the first."""
        reservation = keys.reserve("", "key", "request")
        first, *others = submissions(reservation.job_id, "b", "c")
        store.client.submit(replace(first, key_reservation=reservation), *others)
        return reservation.job_id

    def test_repeated_request_finds_the_rest_of_a_batch(self, redis: Redis, keys: IdempotencyKeys):
        store = ExampleStore(redis)
        for deleted, left in ((self.submit(store, keys), "b"), ("b", "c")):
            store.client.delete(deleted)
            found = keys.reserve("", "key", "request").job
            assert found
            assert found.id == left
            with pytest.raises(KeyReused):
                keys.reserve("", "key", "another request")

    def test_key_is_free_when_the_last_job_of_its_batch_is_removed(self, redis: Redis, keys: IdempotencyKeys):
        store = ExampleStore(redis)
        for job_id in (self.submit(store, keys), "c", "b"):
            store.client.delete(job_id)
        assert keys.reserve("", "key", "another request").job is None

    def test_job_that_another_release_removed_does_not_keep_the_key(
        self, redis: Redis, keys: IdempotencyKeys
    ):
        store = ExampleStore(redis)
        first = self.submit(store, keys)
        redis.delete("longcat:job:b")
        store.client.delete(first)
        found = keys.reserve("", "key", "request").job
        assert found
        assert found.id == "c"

    def test_key_expires_with_the_last_job_of_its_batch(self, redis: Redis, keys: IdempotencyKeys):
        store = ExampleStore(redis, retention_s=60.0)
        first = self.submit(store, keys)
        store.client.cancel(first)
        store.clock.advance(61)
        store.maintenance.sweep()
        found = keys.reserve("", "key", "request").job
        assert found
        assert found.id == "b"


@pytest.mark.parametrize("owner", ["", "alice"])
def test_index_of_the_batch_goes_with_its_last_job(redis: Redis, owner: str):
    store = ExampleStore(redis, retention_s=60.0)
    store.client.submit(*submissions("a", "b", owner=owner))
    store.client.delete("a")
    assert names_in(store, "batch") == ["b"]
    store.client.cancel("b")
    store.clock.advance(61)
    store.maintenance.sweep()
    assert keys_of(redis, "longcat:index:*") == set()


def test_unreadable_batch_hinders_nothing(redis: Redis):
    store = ExampleStore(redis)
    store.submit(id="a")
    for damaged in ("{", '{"id": {}}', "[]"):
        redis.hset("longcat:job:a", "batch", damaged)
        assert store.client.get("a").batch is None
    assert store.client.delete("a")


def test_cancel_reaches_the_jobs_of_one_owner_only(redis: Redis):
    store = ExampleStore(redis)
    store.client.submit(*submissions("a", "b", owner="alice"))
    store.submit(id="other")
    with pytest.raises(JobNotFound):
        store.client.for_owner("mallory").cancel_batch("batch")
    cancelled = store.client.for_owner("alice").cancel_batch("batch")
    assert [(job.id, job.status) for job in cancelled] == [("a", "cancelled"), ("b", "cancelled")]
    assert store.client.get("other").status == "queued"


def test_cancel_passes_over_jobs_that_end_or_are_deleted_meanwhile(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    store = ExampleStore(redis)
    store.client.submit(*submissions("a", "b", "c", "d"))
    ended = store.claim()
    cancel = store.client.cancel

    def cancel_late(job_id: str) -> None:
        if job_id == "a":
            store.holder.succeed(ended, a_result(ended), {})
            store.client.delete("c")
        cancel(job_id)

    monkeypatch.setattr(store.client, "cancel", cancel_late)
    left = store.client.cancel_batch("batch")
    assert [(job.id, job.status) for job in left] == [
        ("a", "succeeded"),
        ("b", "cancelled"),
        ("d", "cancelled"),
    ]


def test_jobs_of_a_batch_are_listed_by_several_statuses(redis: Redis):
    store = ExampleStore(redis)
    store.client.submit(*submissions("a", "b", "c"))
    store.client.submit(*submissions("d", batch="another"))
    for name in ("b", "d"):
        store.client.cancel(name)
    assert names_in(store, "batch", "cancelled", "queued") == ["c", "b", "a"]
    assert names_in(store, "batch", "cancelled", "failed") == ["b"]
