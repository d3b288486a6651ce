"""The life of a job, step by step, on a real Redis."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from redis import Redis

from jobs.errors import GenerationFailed, JobEnded, JobNotFound, LeaseLost
from jobs.record import Job, JobError, Progress
from jobs.storage.keys import video_key
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from tests.jobs.examples import LEASE_S, ORDER, Clock, Desk, a_result, a_submission, keys_of

HALF_WAY = Progress(phase="denoise", step=25, num_steps=50, fraction=0.5, eta_s=60.0)


def at(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock.now_ms / 1000, UTC)


class TestSubmission:
    def test_a_submitted_job_is_queued_with_everything_it_was_given(self, desk: Desk):
        job = desk.submit(
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
            created_at=at(desk.clock),
        )
        assert desk.job_store.client.get("abc") == job

    def test_submitting_an_id_again_changes_nothing(self, desk: Desk):
        first = desk.submit(id="abc", owner="me")
        desk.clock.advance(5)
        assert desk.submit(id="abc", owner="you", priority="high") == first
        assert desk.job_store.client.counts()["queued"] == 1

    def test_submitting_an_id_again_does_not_revive_it(self, desk: Desk):
        claim = desk.start(id="abc")
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert desk.submit(id="abc").status == "succeeded"
        assert desk.job_store.holder.claim("a", LEASE_S) is None

    def test_a_deleted_id_cannot_be_submitted(self, desk: Desk):
        desk.job_store.client.delete(desk.submit(id="abc").id)
        with pytest.raises(JobNotFound):
            desk.submit(id="abc")

    def test_times_are_those_of_the_redis_server(self, redis: Redis):
        seconds, microseconds = redis.time()
        job = JobStore(redis).client.submit(a_submission())
        waited_s = job.created_at.timestamp() - (seconds + microseconds / 1e6)
        assert -0.001 <= waited_s < 60

    def test_nobody_knows_a_job_that_was_never_submitted(self, job_store: JobStore):
        with pytest.raises(JobNotFound):
            job_store.client.get("nothing")
        with pytest.raises(JobNotFound):
            job_store.client.cancel("nothing")
        with pytest.raises(JobNotFound):
            job_store.client.delete("nothing")
        assert job_store.client.estimate("nothing") is None


class TestOrder:
    def test_jobs_are_claimed_by_priority_and_then_in_order_of_submission(self, desk: Desk):
        for name, priority in [
            ("n1", "normal"),
            ("l1", "low"),
            ("h1", "high"),
            ("n2", "normal"),
            ("h2", "high"),
        ]:
            desk.submit(id=name, priority=priority)
        assert [desk.position(name) for name in ("h1", "h2", "n1", "n2", "l1")] == [
            1,
            2,
            3,
            4,
            5,
        ]
        assert [desk.claim().job.id for _ in range(5)] == ["h1", "h2", "n1", "n2", "l1"]

    def test_a_requeued_job_keeps_its_place(self, desk: Desk):
        first = desk.start(id="first")
        desk.submit(id="second")
        desk.submit(id="urgent", priority="high")
        desk.job_store.holder.requeue(first, crashed=False)
        assert [desk.claim().job.id for _ in range(3)] == ["urgent", "first", "second"]

    def test_nothing_queued_is_nothing_to_claim(self, job_store: JobStore):
        assert job_store.holder.claim("a", LEASE_S) is None

    def test_a_running_job_has_no_position(self, desk: Desk):
        assert desk.position(desk.start().job.id) is None


class TestHolding:
    def test_a_claimed_job_runs_in_that_group(self, desk: Desk):
        created_at = at(desk.clock)
        desk.submit(id="abc")
        desk.clock.advance(3)
        claim = desk.claim("group 1")
        assert claim.job == desk.job_store.client.get("abc")
        assert (claim.job.status, claim.job.group, claim.attempt) == ("running", "group 1", 1)
        assert (claim.job.created_at, claim.job.started_at) == (created_at, at(desk.clock))
        assert claim.checkpoint is None

    def test_a_beat_tells_progress(self, desk: Desk):
        claim = desk.start()
        assert desk.job_store.holder.renew_lease(claim, HALF_WAY) is None
        assert desk.job_store.client.get(claim.job.id).progress == HALF_WAY

    def test_a_beat_without_progress_leaves_it_as_it_was(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.renew_lease(claim, HALF_WAY)
        desk.job_store.holder.renew_lease(claim)
        assert desk.job_store.client.get(claim.job.id).progress == HALF_WAY

    def test_beats_keep_the_lease(self, desk: Desk):
        claim = desk.start()
        for _ in range(100):
            desk.clock.advance(LEASE_S - 1)
            desk.job_store.maintenance.sweep()
            assert desk.job_store.holder.renew_lease(claim) is None

    def test_a_late_beat_keeps_a_lease_that_nobody_took_away_yet(self, desk: Desk):
        claim = desk.start()
        desk.clock.advance(LEASE_S + 5)
        assert desk.job_store.holder.renew_lease(claim) is None
        assert desk.job_store.maintenance.sweep().requeued == ()

    def test_a_job_is_uploading_until_it_ends(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.begin_upload(claim)
        assert desk.job_store.client.get(claim.job.id).status == "uploading"
        assert desk.job_store.holder.renew_lease(claim) is None
        assert desk.job_store.holder.succeed(claim, a_result(claim), {}) == "succeeded"

    def test_a_group_may_hold_several_jobs(self, desk: Desk):
        uploading = desk.start(id="one")
        desk.job_store.holder.begin_upload(uploading)
        running = desk.start(id="two")
        assert [desk.job_store.holder.renew_lease(uploading), desk.job_store.holder.renew_lease(running)] == [
            None,
            None,
        ]

    def test_what_was_remembered_comes_with_the_next_claim(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.save_checkpoint(claim, {"key": "state/1", "step": 10})
        desk.job_store.holder.save_checkpoint(claim, {"key": "state/2", "step": 20})
        desk.job_store.holder.requeue(claim, crashed=True)
        assert desk.claim().checkpoint == {"key": "state/2", "step": 20}


class TestEnds:
    def test_a_succeeded_job_shows_result_timings_and_when_it_expires(self, redis: Redis):
        desk = Desk.open(redis, retention_s=100)
        claim = desk.start()
        desk.job_store.holder.renew_lease(claim, HALF_WAY)
        assert desk.job_store.holder.succeed(claim, a_result(claim), {"denoise": 1.5}) == "succeeded"
        job = desk.job_store.client.get(claim.job.id)
        assert (job.status, job.result, job.timings_s) == ("succeeded", a_result(claim), {"denoise": 1.5})
        assert job.finished_at == at(desk.clock)
        assert job.expires_at is not None
        assert (job.expires_at - job.finished_at).total_seconds() == 100
        assert job.progress == HALF_WAY.model_copy(update={"fraction": 1.0, "eta_s": 0.0})

    def test_a_failed_job_says_why(self, desk: Desk):
        claim = desk.start()
        assert (
            desk.job_store.holder.fail(claim, GenerationFailed("the prompt has no words"), {"encode": 0.1})
            == "failed"
        )
        job = desk.job_store.client.get(claim.job.id)
        assert job.error == JobError(
            code="generation_failed", message="the prompt has no words", retryable=False
        )
        assert job.timings_s == {"encode": 0.1}

    def test_an_error_that_came_from_elsewhere_is_kept_as_it_is(self, desk: Desk):
        error = JobError(code="out_of_memory", message="rank 3", retryable=False)
        claim = desk.start()
        desk.job_store.holder.fail(claim, error, {})
        assert desk.job_store.client.get(claim.job.id).error == error

    @pytest.mark.parametrize("end", ["succeed", "fail", "confirm_cancel"])
    def test_a_final_state_never_changes(self, desk: Desk, end: str):
        claim = desk.start()
        status = END[end](desk.job_store, claim)
        job = desk.job_store.client.get(claim.job.id)
        assert job.status == status
        for again in END.values():
            assert again(desk.job_store, claim) == status
        assert desk.job_store.holder.requeue(claim, crashed=True) == status
        assert desk.job_store.holder.renew_lease(claim, HALF_WAY) == "lease_lost"
        for refused in (
            lambda: desk.job_store.holder.begin_upload(claim),
            lambda: desk.job_store.holder.save_checkpoint(claim, {"step": 1}),
        ):
            with pytest.raises(LeaseLost):
                refused()
        desk.lose_lease()
        assert desk.job_store.client.get(claim.job.id) == job

    def test_an_ended_job_is_not_claimed_again(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert desk.job_store.holder.claim("b", LEASE_S) is None


def _acknowledged(job_store: JobStore, claim: Lease) -> str:
    job_store.holder.confirm_cancel(claim)
    return job_store.client.get(claim.job.id).status


END = {
    "succeed": lambda job_store, claim: job_store.holder.succeed(claim, a_result(claim), {}),
    "fail": lambda job_store, claim: job_store.holder.fail(claim, GenerationFailed("no"), {}),
    "confirm_cancel": _acknowledged,
}


class TestCancel:
    def test_a_queued_job_is_cancelled_at_once(self, desk: Desk):
        job = desk.submit()
        cancelled = desk.job_store.client.cancel(job.id)
        assert cancelled.status == "cancelled"
        assert cancelled == desk.job_store.client.get(job.id)
        assert desk.job_store.holder.claim("a", LEASE_S) is None

    def test_a_running_job_goes_on_until_its_holder_hears_of_it(self, desk: Desk):
        claim = desk.start()
        cancelled = desk.job_store.client.cancel(claim.job.id)
        assert (cancelled.status, cancelled.cancel_requested) == ("running", True)
        assert desk.job_store.holder.renew_lease(claim) == "cancel"
        desk.job_store.holder.confirm_cancel(claim)
        assert desk.job_store.client.get(claim.job.id).status == "cancelled"

    def test_a_cancelled_job_never_becomes_succeeded(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.begin_upload(claim)
        desk.job_store.client.cancel(claim.job.id)
        assert desk.job_store.holder.succeed(claim, a_result(claim), {}) == "cancelled"
        job = desk.job_store.client.get(claim.job.id)
        assert (job.status, job.result) == ("cancelled", None)

    def test_a_cancelled_job_does_not_become_failed_either(self, desk: Desk):
        claim = desk.start()
        desk.job_store.client.cancel(claim.job.id)
        assert desk.job_store.holder.fail(claim, GenerationFailed("no"), {}) == "cancelled"
        assert desk.job_store.client.get(claim.job.id).error is None

    @pytest.mark.parametrize("crashed", [True, False])
    def test_a_cancelled_job_is_not_requeued(self, desk: Desk, crashed: bool):
        claim = desk.start()
        desk.job_store.client.cancel(claim.job.id)
        assert desk.job_store.holder.requeue(claim, crashed=crashed) == "cancelled"

    def test_a_cancelled_job_whose_holder_died_ends_with_the_lease(self, desk: Desk):
        claim = desk.start()
        desk.job_store.client.cancel(claim.job.id)
        desk.lose_lease()
        assert desk.job_store.client.get(claim.job.id).status == "cancelled"

    def test_cancelling_twice_is_cancelling_once(self, desk: Desk):
        job = desk.submit()
        assert desk.job_store.client.cancel(job.id) == desk.job_store.client.cancel(job.id)

    @pytest.mark.parametrize("end", ["succeed", "fail"])
    def test_what_succeeded_or_failed_cannot_be_cancelled(self, desk: Desk, end: str):
        claim = desk.start()
        END[end](desk.job_store, claim)
        with pytest.raises(JobEnded):
            desk.job_store.client.cancel(claim.job.id)


class TestRequeue:
    def test_a_crash_uses_up_an_attempt(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.renew_lease(claim, HALF_WAY)
        assert desk.job_store.holder.requeue(claim, crashed=True) == "queued"
        job = desk.job_store.client.get(claim.job.id)
        assert (job.attempt, job.group, job.progress) == (1, None, None)
        assert desk.claim().attempt == 2

    def test_a_drain_gives_its_attempt_back(self, desk: Desk):
        claim = desk.start()
        assert desk.job_store.holder.requeue(claim, crashed=False) == "queued"
        assert desk.job_store.client.get(claim.job.id).attempt == 0
        assert desk.claim().job.attempt == 1

    def test_no_two_claims_store_under_the_same_keys_even_after_a_drain(self, desk: Desk):
        desk.submit()
        keys = []
        for crashed in (False, False, True):
            claim = desk.claim()
            keys.append(video_key(claim.job.id, claim.attempt))
            desk.job_store.holder.requeue(claim, crashed=crashed)
        assert len(set(keys)) == 3

    def test_the_last_crash_fails_the_job(self, redis: Redis):
        desk = Desk.open(redis, max_attempts=3)
        desk.submit(id="poison")
        outcomes = [desk.job_store.holder.requeue(desk.claim(), crashed=True) for _ in range(3)]
        assert outcomes == ["queued", "queued", "failed"]
        job = desk.job_store.client.get("poison")
        assert job.error is not None
        assert (job.error.code, job.error.retryable, job.attempt) == ("worker_crashed", True, 3)
        assert desk.job_store.holder.claim("a", LEASE_S) is None

    def test_drains_never_fail_a_job(self, redis: Redis):
        desk = Desk.open(redis, max_attempts=1)
        desk.submit()
        assert {desk.job_store.holder.requeue(desk.claim(), crashed=False) for _ in range(10)} == {"queued"}

    def test_the_first_start_stays_the_start(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.requeue(claim, crashed=True)
        desk.clock.advance(10)
        assert desk.claim().job.started_at == claim.job.started_at


class TestFence:
    def test_every_claim_has_a_higher_fence(self, desk: Desk):
        desk.submit()
        fences = []
        for _ in range(3):
            claim = desk.claim()
            fences.append(claim.fence)
            desk.job_store.holder.requeue(claim, crashed=False)
        assert fences == sorted(set(fences))

    @pytest.mark.parametrize("taken_again", [True, False])
    def test_who_lost_the_lease_can_change_nothing(self, desk: Desk, taken_again: bool):
        claim = desk.start()
        desk.lose_lease()
        if taken_again:
            desk.claim("b")
        job = desk.job_store.client.get(claim.job.id)
        assert desk.job_store.holder.renew_lease(claim, HALF_WAY) == "lease_lost"
        for refused in (
            lambda: desk.job_store.holder.begin_upload(claim),
            lambda: desk.job_store.holder.save_checkpoint(claim, {"step": 1}),
            lambda: desk.job_store.holder.succeed(claim, a_result(claim), {}),
            lambda: desk.job_store.holder.fail(claim, GenerationFailed("no"), {}),
            lambda: desk.job_store.holder.confirm_cancel(claim),
            lambda: desk.job_store.holder.requeue(claim, crashed=True),
        ):
            with pytest.raises(LeaseLost):
                refused()
        assert desk.job_store.client.get(claim.job.id) == job

    def test_who_lost_the_lease_on_the_last_attempt_cannot_end_the_failed_job(self, redis: Redis):
        desk = Desk.open(redis, max_attempts=1)
        claim = desk.start()
        desk.lose_lease()
        with pytest.raises(LeaseLost):
            desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert desk.job_store.client.get(claim.job.id).status == "failed"

    def test_of_two_holders_one_commits(self, desk: Desk):
        zombie = desk.start()
        desk.lose_lease()
        holder = desk.claim("b")
        assert desk.job_store.holder.succeed(holder, a_result(holder), {}) == "succeeded"
        with pytest.raises(LeaseLost):
            desk.job_store.holder.succeed(zombie, a_result(zombie), {})
        assert desk.job_store.client.get(holder.job.id).result == a_result(holder)


class TestDelete:
    def test_a_deleted_job_is_gone_and_its_files_are_to_be_removed(self, desk: Desk):
        job = desk.submit()
        assert desk.job_store.client.delete(job.id) is True
        with pytest.raises(JobNotFound):
            desk.job_store.client.get(job.id)
        assert desk.job_store.client.page() == []
        assert desk.job_store.holder.claim("a", LEASE_S) is None
        assert desk.job_store.maintenance.due_file_removals().keys() == {job.id}

    def test_deleting_twice_is_deleting_once(self, desk: Desk):
        job = desk.submit()
        desk.job_store.client.delete(job.id)
        with pytest.raises(JobNotFound):
            desk.job_store.client.delete(job.id)
        assert desk.job_store.maintenance.due_file_removals().keys() == {job.id}

    def test_a_running_job_is_cancelled_and_goes_when_its_holder_lets_go(self, desk: Desk):
        claim = desk.start()
        assert desk.job_store.client.delete(claim.job.id) is False
        assert desk.job_store.client.get(claim.job.id).cancel_requested
        assert desk.job_store.maintenance.due_file_removals() == {}
        assert desk.job_store.holder.renew_lease(claim) == "cancel"
        desk.job_store.holder.confirm_cancel(claim)
        with pytest.raises(JobNotFound):
            desk.job_store.client.get(claim.job.id)
        assert desk.job_store.maintenance.due_file_removals().keys() == {claim.job.id}

    def test_a_running_job_whose_holder_died_goes_with_the_lease(self, desk: Desk):
        claim = desk.start()
        desk.job_store.client.delete(claim.job.id)
        desk.lose_lease()
        assert desk.job_store.maintenance.due_file_removals().keys() == {claim.job.id}
        assert desk.job_store.holder.renew_lease(claim) == "lease_lost"

    def test_nothing_of_a_deleted_job_stays_in_redis_once_its_files_are_removed(
        self, redis: Redis, desk: Desk
    ):
        claim = desk.start(owner="me", max_queue_s=9)
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        desk.job_store.client.delete(claim.job.id)
        assert desk.look_through_files() == {claim.job.id}
        desk.settle()
        assert desk.look_through_files() == {claim.job.id}
        of_all_jobs = {
            *("longcat:submitted", "longcat:turn:normal", "longcat:served:normal", "longcat:queued_work"),
            *("longcat:measures", "longcat:runs:any", "longcat:runs:text_to_video"),
            *("longcat:pace:any", "longcat:pace:text_to_video"),
        }
        of_calls = keys_of(redis, "longcat:claims:*") | keys_of(redis, "longcat:deletes:*")
        assert keys_of(redis) - of_calls == of_all_jobs


class TestRunDeadline:
    def test_a_job_that_runs_too_long_is_told_so(self, desk: Desk):
        claim = desk.start(max_run_s=10)
        desk.clock.advance(10)
        assert desk.job_store.holder.renew_lease(claim) is None
        desk.clock.advance(1)
        assert desk.job_store.holder.renew_lease(claim) == "deadline"

    def test_time_in_the_queue_is_not_run_time_but_earlier_attempts_are(self, desk: Desk):
        claim = desk.start(max_run_s=10)
        desk.clock.advance(6)
        desk.job_store.holder.requeue(claim, crashed=True)
        desk.clock.advance(1000)
        claim = desk.claim()
        desk.clock.advance(4)
        assert desk.job_store.holder.renew_lease(claim) is None
        desk.clock.advance(1)
        assert desk.job_store.holder.renew_lease(claim) == "deadline"

    def test_an_upload_is_not_bounded_by_it(self, desk: Desk):
        claim = desk.start(max_run_s=10)
        desk.job_store.holder.begin_upload(claim)
        desk.clock.advance(20)
        assert desk.job_store.holder.renew_lease(claim) is None

    def test_cancel_comes_before_the_deadline(self, desk: Desk):
        claim = desk.start(max_run_s=10)
        desk.clock.advance(20)
        desk.job_store.client.cancel(claim.job.id)
        assert desk.job_store.holder.renew_lease(claim) == "cancel"


class TestViews:
    def test_pages_go_from_the_newest_and_continue_behind_a_job(self, desk: Desk):
        ids = [desk.submit().id for _ in range(5)]
        first = [job.id for job in desk.job_store.client.page(limit=2)]
        assert first == [ids[4], ids[3]]
        assert [job.id for job in desk.job_store.client.page(limit=2, after=first[-1])] == [ids[2], ids[1]]
        assert [job.id for job in desk.job_store.client.page(after=ids[1], newest_first=False)] == ids[2:]

    def test_pages_can_be_of_one_status_and_one_owner(self, desk: Desk):
        mine = desk.submit(owner="me")
        yours = desk.submit(owner="you")
        running = desk.claim()
        nobodys = desk.submit()
        assert running.job.id == mine.id
        assert [job.id for job in desk.job_store.client.page(status="queued")] == [nobodys.id, yours.id]
        assert [job.id for job in desk.job_store.for_owner("me").client.page()] == [mine.id]
        assert [job.id for job in desk.job_store.for_owner("").client.page()] == [nobodys.id]
        assert desk.job_store.for_owner("me").client.page(status="queued") == []

    def test_a_page_can_continue_behind_a_job_that_changed_its_status(self, desk: Desk):
        first, second = desk.submit(), desk.submit()
        desk.job_store.client.cancel(second.id)
        assert [job.id for job in desk.job_store.client.page(status="queued", after=second.id)] == [first.id]

    def test_a_page_cannot_continue_behind_a_job_that_is_not_there(self, job_store: JobStore):
        with pytest.raises(JobNotFound):
            job_store.client.page(after="nothing")

    def test_an_empty_page_was_asked_for(self, desk: Desk):
        desk.submit()
        assert desk.job_store.client.page(limit=0) == []

    def test_counts_tell_how_many_jobs_are_in_each_status(self, desk: Desk):
        for _ in range(4):
            desk.submit()
        desk.job_store.holder.begin_upload(desk.claim())
        desk.job_store.holder.fail(desk.claim(), GenerationFailed("no"), {})
        assert desk.job_store.client.counts() == {
            "queued": 2,
            "running": 0,
            "uploading": 1,
            "succeeded": 0,
            "failed": 1,
            "cancelled": 0,
        }


class TestEvents:
    def test_a_job_tells_each_change(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.renew_lease(claim, HALF_WAY)
        desk.job_store.holder.begin_upload(claim)
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        events = desk.job_store.client.events(claim.job.id)
        assert [event.status for event in events] == [
            "queued",
            "running",
            "running",
            "uploading",
            "succeeded",
        ]
        assert [event.progress for event in events[:4]] == [None, None, HALF_WAY, HALF_WAY]

    def test_events_continue_after_one(self, desk: Desk):
        job = desk.submit()
        [first] = desk.job_store.client.events(job.id)
        assert desk.job_store.client.events(job.id, after=first.id) == []
        desk.claim()
        [second] = desk.job_store.client.events(job.id, after=first.id)
        assert second.status == "running"

    def test_the_stream_does_not_grow_with_the_job(self, redis: Redis, desk: Desk):
        claim = desk.start()
        for step in range(500):
            desk.job_store.holder.renew_lease(claim, Progress(phase="denoise", step=step))
        assert 200 <= redis.xlen(f"longcat:events:{claim.job.id}") < 400
        last = desk.job_store.client.events(claim.job.id)[-1].progress
        assert last is not None
        assert last.step == 499

    def test_a_job_that_is_not_there_has_none(self, job_store: JobStore):
        assert job_store.client.events("nothing", wait_s=0.01) == []
