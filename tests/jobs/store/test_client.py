"""Clients submit, show, list, cancel and delete jobs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from redis import Redis

from jobs.errors import GenerationFailed, JobEnded, JobNotFound
from jobs.record import Job, JobEvent, Progress
from jobs.store.events import newest_events
from jobs.store.job_store import JobStore
from jobs.store.listing import Cursor, JobFilter
from jobs.store.usage import usage
from tests.jobs.examples import (
    LEASE_S,
    ORDER,
    REQUIREMENT,
    Clock,
    ExampleStore,
    a_result,
    a_submission,
    keys_of,
)
from tests.waiting import wait_until

HALF_WAY = Progress(phase="denoise", step=25, num_steps=50, fraction=0.5, eta_s=60.0)


def at(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock.now_ms / 1000, UTC)


class TestSubmission:
    def test_submitted_job_is_queued_with_all_its_fields(self, store: ExampleStore):
        job = store.submit(
            id="abc",
            priority="high",
            owner="me",
            metadata={"scene": "ünë 1", "empty": ""},
            webhook_url="https://example.com/hook",
        )
        assert job == Job(
            id="abc",
            status="queued",
            order=ORDER,
            priority="high",
            owner="me",
            metadata={"scene": "ünë 1", "empty": ""},
            webhook_url="https://example.com/hook",
            requirement=REQUIREMENT,
            created_at=at(store.clock),
        )
        assert store.client.get("abc") == job

    def test_submitting_an_id_again_changes_nothing(self, store: ExampleStore):
        first = store.submit(id="abc", owner="me")
        store.clock.advance(5)
        assert store.submit(id="abc", owner="you", priority="high") == first
        assert store.client.counts()["queued"] == 1

    def test_submitting_an_id_again_does_not_revive_it(self, store: ExampleStore):
        claim = store.start(id="abc")
        store.holder.succeed(claim, a_result(claim), {})
        assert store.submit(id="abc").status == "succeeded"
        assert store.holder.claim("a", LEASE_S) is None

    def test_deleted_id_cannot_be_submitted(self, store: ExampleStore):
        store.client.delete(store.submit(id="abc").id)
        with pytest.raises(JobNotFound):
            store.submit(id="abc")

    def test_times_are_by_the_clock_of_redis(self, redis: Redis):
        seconds, microseconds = redis.time()
        job = JobStore(redis).client.submit(a_submission()).job
        waited_s = job.created_at.timestamp() - (seconds + microseconds / 1e6)
        assert -0.001 <= waited_s < 60

    def test_unknown_job_is_not_found(self, store: ExampleStore):
        with pytest.raises(JobNotFound):
            store.client.get("nothing")
        with pytest.raises(JobNotFound):
            store.client.cancel("nothing")
        with pytest.raises(JobNotFound):
            store.client.delete("nothing")
        assert store.client.estimate("nothing") is None


class TestOrder:
    def test_jobs_are_claimed_by_priority_and_then_in_order_of_submission(self, store: ExampleStore):
        for name, priority in [
            ("n1", "normal"),
            ("l1", "low"),
            ("h1", "high"),
            ("n2", "normal"),
            ("h2", "high"),
        ]:
            store.submit(id=name, priority=priority)
        assert [store.position(name) for name in ("h1", "h2", "n1", "n2", "l1")] == [
            1,
            2,
            3,
            4,
            5,
        ]
        assert [store.claim().job.id for _ in range(5)] == ["h1", "h2", "n1", "n2", "l1"]

    def test_requeued_job_keeps_its_place(self, store: ExampleStore):
        first = store.start(id="first")
        store.submit(id="second")
        store.submit(id="urgent", priority="high")
        store.holder.requeue(first, crashed=False)
        assert [store.claim().job.id for _ in range(3)] == ["urgent", "first", "second"]

    def test_claim_on_an_empty_queue_returns_none(self, store: ExampleStore):
        assert store.holder.claim("a", LEASE_S) is None

    def test_running_job_has_no_position(self, store: ExampleStore):
        assert store.client.estimate(store.start().job.id) is None


class TestCancel:
    def test_queued_job_is_cancelled_at_once(self, store: ExampleStore):
        job = store.submit()
        cancelled = store.client.cancel(job.id)
        assert cancelled.status == "cancelled"
        assert cancelled == store.client.get(job.id)
        assert store.holder.claim("a", LEASE_S) is None

    def test_running_job_is_cancelled_when_its_holder_confirms(self, store: ExampleStore):
        claim = store.start()
        cancelled = store.client.cancel(claim.job.id)
        assert (cancelled.status, cancelled.cancel_requested) == ("running", True)
        assert store.holder.renew_lease(claim) == "cancel"
        store.holder.confirm_cancel(claim)
        assert store.client.get(claim.job.id).status == "cancelled"

    def test_cancelled_job_never_succeeds(self, store: ExampleStore):
        claim = store.start()
        store.holder.begin_upload(claim)
        store.client.cancel(claim.job.id)
        assert store.holder.succeed(claim, a_result(claim), {}) == "cancelled"
        job = store.client.get(claim.job.id)
        assert (job.status, job.result) == ("cancelled", None)

    def test_cancelled_job_never_fails(self, store: ExampleStore):
        claim = store.start()
        store.client.cancel(claim.job.id)
        assert store.holder.fail(claim, GenerationFailed("no"), {}) == "cancelled"
        assert store.client.get(claim.job.id).error is None

    @pytest.mark.parametrize("crashed", [True, False])
    def test_cancelled_job_is_not_requeued(self, store: ExampleStore, crashed: bool):
        claim = store.start()
        store.client.cancel(claim.job.id)
        assert store.holder.requeue(claim, crashed=crashed) == "cancelled"

    def test_cancelled_job_of_a_dead_holder_ends_with_the_lease(self, store: ExampleStore):
        claim = store.start()
        store.client.cancel(claim.job.id)
        store.lose_lease()
        assert store.client.get(claim.job.id).status == "cancelled"

    def test_cancelling_twice_is_cancelling_once(self, store: ExampleStore):
        job = store.submit()
        assert store.client.cancel(job.id) == store.client.cancel(job.id)

    @pytest.mark.parametrize("end", ["succeed", "fail"])
    def test_ended_job_cannot_be_cancelled(self, store: ExampleStore, end: str):
        claim = store.start()
        if end == "succeed":
            store.holder.succeed(claim, a_result(claim), {})
        else:
            store.holder.fail(claim, GenerationFailed("no"), {})
        with pytest.raises(JobEnded):
            store.client.cancel(claim.job.id)


class TestDelete:
    def test_deleted_job_is_removed_and_so_are_its_files(self, store: ExampleStore):
        job = store.submit()
        assert store.client.delete(job.id) is True
        with pytest.raises(JobNotFound):
            store.client.get(job.id)
        assert store.client.list_jobs() == []
        assert store.holder.claim("a", LEASE_S) is None
        assert store.due_file_removals == {job.id}

    def test_deleting_twice_is_deleting_once(self, store: ExampleStore):
        job = store.submit()
        store.client.delete(job.id)
        with pytest.raises(JobNotFound):
            store.client.delete(job.id)
        assert store.due_file_removals == {job.id}

    def test_deleted_running_job_is_removed_when_its_holder_stops(self, store: ExampleStore):
        claim = store.start()
        assert store.client.delete(claim.job.id) is False
        assert store.client.get(claim.job.id).cancel_requested
        assert store.due_file_removals == set()
        assert store.holder.renew_lease(claim) == "cancel"
        store.holder.confirm_cancel(claim)
        with pytest.raises(JobNotFound):
            store.client.get(claim.job.id)
        assert store.due_file_removals == {claim.job.id}

    def test_deleted_job_of_a_dead_holder_is_removed_with_the_lease(self, store: ExampleStore):
        claim = store.start()
        store.client.delete(claim.job.id)
        store.lose_lease()
        assert store.due_file_removals == {claim.job.id}
        assert store.holder.renew_lease(claim) == "lease_lost"

    def test_deleted_job_leaves_no_keys_once_its_files_are_removed(self, redis: Redis, store: ExampleStore):
        claim = store.start(owner="me", max_queue_s=9)
        store.holder.succeed(claim, a_result(claim), {})
        store.client.delete(claim.job.id)
        assert store.confirm_all_file_removals() == {claim.job.id}
        store.wait_for_late_uploads()
        assert store.confirm_all_file_removals() == {claim.job.id}
        of_all_jobs = {
            *("longcat:submitted", "longcat:queued_work_units", "longcat:recent_runs", "longcat:metrics"),
            *("longcat:queue:normal:virtual_time", "longcat:queue:normal:idle", "longcat:gpu_time"),
        }
        patterns = ("longcat:claims:*", "longcat:deletes:*", "longcat:gpu_budget:*", "longcat:usage:*")
        that_expire = {key for pattern in patterns for key in keys_of(redis, pattern)}
        assert keys_of(redis) - that_expire == of_all_jobs
        assert all(redis.ttl(key) > 0 for key in that_expire)


class TestViews:
    def test_pages_go_from_the_newest_and_continue_behind_a_job(self, store: ExampleStore):
        ids = [store.submit().id for _ in range(5)]
        first = [job.id for job in store.client.list_jobs(limit=2)]
        assert first == [ids[4], ids[3]]
        assert [job.id for job in store.client.list_jobs(limit=2, after=first[-1])] == [ids[2], ids[1]]
        assert [job.id for job in store.client.list_jobs(after=ids[1], newest_first=False)] == ids[2:]

    def test_pages_can_be_of_one_status_and_one_owner(self, store: ExampleStore):
        mine = store.submit(owner="me")
        yours = store.submit(owner="you")
        running = store.claim()
        nobodys = store.submit()
        assert running.job.id == mine.id
        queued = store.client.page(JobFilter(("queued",)), 20)
        assert [job.id for job in queued.jobs] == [nobodys.id, yours.id]
        assert [job.id for job in store.client.for_owner("me").list_jobs()] == [mine.id]
        assert [job.id for job in store.client.for_owner("").list_jobs()] == [nobodys.id]
        assert store.client.for_owner("me").page(JobFilter(("queued",)), 20).jobs == []

    @pytest.mark.parametrize("action", ["get", "cancel", "delete"])
    def test_job_of_another_owner_does_not_exist(self, store: ExampleStore, action: str):
        job = store.submit(owner="me")
        with pytest.raises(JobNotFound):
            getattr(store.client.for_owner("you"), action)(job.id)
        assert store.client.for_owner("me").get(job.id).status == "queued"

    def test_page_continues_behind_a_job_that_changed_its_status(self, store: ExampleStore):
        first, second = store.submit(), store.submit()
        store.client.cancel(second.id)
        queued = store.client.page(JobFilter(("queued",)), 20, Cursor(second.id))
        assert [job.id for job in queued.jobs] == [first.id]

    def test_page_with_limit_zero_is_empty(self, store: ExampleStore):
        store.submit()
        assert store.client.list_jobs(limit=0) == []

    def test_jobs_by_id_leave_out_those_that_cannot_be_shown(self, redis: Redis, store: ExampleStore):
        mine, yours, broken = (store.submit(owner=owner) for owner in ("me", "you", "me"))
        redis.hset(f"longcat:job:{broken.id}", "order", "{")
        ids = [mine.id, yours.id, broken.id, "nothing"]
        assert store.client.for_owner("me").get_all(ids) == {mine.id: mine}
        assert store.client.get_all(ids) == {mine.id: mine, yours.id: yours}

    def test_jobs_and_usage_can_be_read_while_redis_is_full(self, redis: Redis, store: ExampleStore):
        lease = store.start(owner="me")
        store.clock.advance(1)
        store.holder.succeed(lease, a_result(lease), {})
        job = store.client.get(lease.job.id)
        redis.config_set("maxmemory", "1")
        try:
            assert store.client.counts()["succeeded"] == 1
            assert store.client.page(JobFilter(task=job.order.plan.task), 1).jobs == [job]
            assert newest_events(redis, [job.id]).keys() == {job.id}
            assert usage(redis, "me", store.clock) == usage(redis, None, store.clock) != []
        finally:
            redis.config_set("maxmemory", "0")

    def test_counts_are_by_status(self, store: ExampleStore):
        for _ in range(4):
            store.submit()
        store.holder.begin_upload(store.claim())
        store.holder.fail(store.claim(), GenerationFailed("no"), {})
        assert store.client.counts() == {
            "queued": 2,
            "running": 0,
            "uploading": 1,
            "succeeded": 0,
            "failed": 1,
            "cancelled": 0,
        }


class TestEvents:
    def test_every_change_is_an_event(self, store: ExampleStore):
        claim = store.start()
        store.holder.renew_lease(claim, HALF_WAY)
        store.holder.begin_upload(claim)
        store.holder.succeed(claim, a_result(claim), {})
        events = store.client.events(claim.job.id)
        assert [event.status for event in events] == [
            "queued",
            "running",
            "running",
            "uploading",
            "succeeded",
        ]
        assert [event.progress for event in events[:4]] == [None, None, HALF_WAY, HALF_WAY]

    def test_events_continue_after_one(self, store: ExampleStore):
        job = store.submit()
        [first] = store.client.events(job.id)
        assert store.client.events(job.id, after=first.id) == []
        store.claim()
        [second] = store.client.events(job.id, after=first.id)
        assert second.status == "running"

    def test_event_stream_is_trimmed(self, redis: Redis, store: ExampleStore):
        claim = store.start()
        for step in range(500):
            store.holder.renew_lease(claim, Progress(phase="denoise", step=step))
        assert 200 <= redis.xlen(f"longcat:events:{claim.job.id}") < 400
        last = store.client.events(claim.job.id)[-1].progress
        assert last is not None
        assert last.step == 499

    def test_ended_job_keeps_its_last_events(self, redis: Redis, store: ExampleStore):
        claim = store.start()
        for step in range(200):
            store.holder.renew_lease(claim, Progress(phase="denoise", step=step))
        before = store.client.events(claim.job.id)[-1]
        store.holder.succeed(claim, a_result(claim), {})
        assert redis.xlen(f"longcat:events:{claim.job.id}") < 100
        assert [event.status for event in store.client.events(claim.job.id, after=before.id)] == ["succeeded"]

    def test_wait_ends_with_the_first_new_event(self, redis: Redis, store: ExampleStore):
        job = store.submit()
        [first] = store.client.events(job.id)

        def wait() -> list[JobEvent]:
            while not (found := store.client.events(job.id, after=first.id, wait_s=60)):
                pass
            return found

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(wait)
            try:
                wait_until(lambda: redis.info("clients")["blocked_clients"])
            finally:
                store.client.cancel(job.id)
            assert [event.status for event in waiting.result()] == ["cancelled"]

    def test_unknown_job_has_no_events(self, store: ExampleStore):
        assert store.client.events("nothing", wait_s=0.01) == []
