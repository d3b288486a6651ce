"""The life of a job, step by step, on a real Redis."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from redis import Redis

from jobs.errors import GenerationFailed, JobEnded, JobNotFound, LeaseLost
from jobs.keys import video_key
from jobs.record import Job, JobError, Progress
from jobs.transitions import Claim, Ledger
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
        assert desk.ledger.get("abc") == job

    def test_submitting_an_id_again_changes_nothing(self, desk: Desk):
        first = desk.submit(id="abc", owner="me")
        desk.clock.advance(5)
        assert desk.submit(id="abc", owner="you", priority="high") == first
        assert desk.ledger.counts()["queued"] == 1

    def test_submitting_an_id_again_does_not_revive_it(self, desk: Desk):
        claim = desk.start(id="abc")
        desk.ledger.succeed(claim, a_result(claim), {})
        assert desk.submit(id="abc").status == "succeeded"
        assert desk.ledger.claim("a", LEASE_S) is None

    def test_a_deleted_id_cannot_be_submitted(self, desk: Desk):
        desk.ledger.delete(desk.submit(id="abc").id)
        with pytest.raises(JobNotFound):
            desk.submit(id="abc")

    def test_times_are_those_of_the_redis_server(self, redis: Redis):
        seconds, microseconds = redis.time()
        job = Ledger(redis).submit(a_submission())
        waited_s = job.created_at.timestamp() - (seconds + microseconds / 1e6)
        assert -0.001 <= waited_s < 60

    def test_nobody_knows_a_job_that_was_never_submitted(self, ledger: Ledger):
        with pytest.raises(JobNotFound):
            ledger.get("nothing")
        with pytest.raises(JobNotFound):
            ledger.cancel("nothing")
        with pytest.raises(JobNotFound):
            ledger.delete("nothing")
        assert ledger.position("nothing") is None


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
        assert [desk.ledger.position(name) for name in ("h1", "h2", "n1", "n2", "l1")] == [1, 2, 3, 4, 5]
        assert [desk.claim().job.id for _ in range(5)] == ["h1", "h2", "n1", "n2", "l1"]

    def test_a_requeued_job_keeps_its_place(self, desk: Desk):
        first = desk.start(id="first")
        desk.submit(id="second")
        desk.submit(id="urgent", priority="high")
        desk.ledger.requeue(first, crashed=False)
        assert [desk.claim().job.id for _ in range(3)] == ["urgent", "first", "second"]

    def test_nothing_queued_is_nothing_to_claim(self, ledger: Ledger):
        assert ledger.claim("a", LEASE_S) is None

    def test_a_running_job_has_no_position(self, desk: Desk):
        assert desk.ledger.position(desk.start().job.id) is None


class TestHolding:
    def test_a_claimed_job_runs_in_that_group(self, desk: Desk):
        created_at = at(desk.clock)
        desk.submit(id="abc")
        desk.clock.advance(3)
        claim = desk.claim("group 1")
        assert claim.job == desk.ledger.get("abc")
        assert (claim.job.status, claim.job.group, claim.attempt) == ("running", "group 1", 1)
        assert (claim.job.created_at, claim.job.started_at) == (created_at, at(desk.clock))
        assert claim.saved is None

    def test_a_beat_tells_progress(self, desk: Desk):
        claim = desk.start()
        assert desk.ledger.beat(claim, HALF_WAY) == "go"
        assert desk.ledger.get(claim.job.id).progress == HALF_WAY

    def test_a_beat_without_progress_leaves_it_as_it_was(self, desk: Desk):
        claim = desk.start()
        desk.ledger.beat(claim, HALF_WAY)
        desk.ledger.beat(claim)
        assert desk.ledger.get(claim.job.id).progress == HALF_WAY

    def test_beats_keep_the_lease(self, desk: Desk):
        claim = desk.start()
        for _ in range(100):
            desk.clock.advance(LEASE_S - 1)
            desk.ledger.sweep()
            assert desk.ledger.beat(claim) == "go"

    def test_a_late_beat_keeps_a_lease_that_nobody_took_away_yet(self, desk: Desk):
        claim = desk.start()
        desk.clock.advance(LEASE_S + 5)
        assert desk.ledger.beat(claim) == "go"
        assert desk.ledger.sweep().requeued == ()

    def test_a_job_is_uploading_until_it_ends(self, desk: Desk):
        claim = desk.start()
        desk.ledger.begin_upload(claim)
        assert desk.ledger.get(claim.job.id).status == "uploading"
        assert desk.ledger.beat(claim) == "go"
        assert desk.ledger.succeed(claim, a_result(claim), {}) == "succeeded"

    def test_a_group_may_hold_several_jobs(self, desk: Desk):
        uploading = desk.start(id="one")
        desk.ledger.begin_upload(uploading)
        running = desk.start(id="two")
        assert [desk.ledger.beat(uploading), desk.ledger.beat(running)] == ["go", "go"]

    def test_what_was_remembered_comes_with_the_next_claim(self, desk: Desk):
        claim = desk.start()
        desk.ledger.remember(claim, {"key": "state/1", "step": 10})
        desk.ledger.remember(claim, {"key": "state/2", "step": 20})
        desk.ledger.requeue(claim, crashed=True)
        assert desk.claim().saved == {"key": "state/2", "step": 20}


class TestEnds:
    def test_a_succeeded_job_shows_result_timings_and_when_it_expires(self, redis: Redis):
        desk = Desk.open(redis, retention_s=100)
        claim = desk.start()
        desk.ledger.beat(claim, HALF_WAY)
        assert desk.ledger.succeed(claim, a_result(claim), {"denoise": 1.5}) == "succeeded"
        job = desk.ledger.get(claim.job.id)
        assert (job.status, job.result, job.timings_s) == ("succeeded", a_result(claim), {"denoise": 1.5})
        assert job.finished_at == at(desk.clock)
        assert job.expires_at is not None
        assert (job.expires_at - job.finished_at).total_seconds() == 100
        assert job.progress == HALF_WAY.model_copy(update={"fraction": 1.0, "eta_s": 0.0})

    def test_a_failed_job_says_why(self, desk: Desk):
        claim = desk.start()
        assert (
            desk.ledger.fail(claim, GenerationFailed("the prompt has no words"), {"encode": 0.1}) == "failed"
        )
        job = desk.ledger.get(claim.job.id)
        assert job.error == JobError(
            code="generation_failed", message="the prompt has no words", retryable=False
        )
        assert job.timings_s == {"encode": 0.1}

    def test_an_error_that_came_from_elsewhere_is_kept_as_it_is(self, desk: Desk):
        error = JobError(code="out_of_memory", message="rank 3", retryable=False)
        claim = desk.start()
        desk.ledger.fail(claim, error, {})
        assert desk.ledger.get(claim.job.id).error == error

    @pytest.mark.parametrize("end", ["succeed", "fail", "acknowledge_cancel"])
    def test_a_final_state_never_changes(self, desk: Desk, end: str):
        claim = desk.start()
        status = END[end](desk.ledger, claim)
        job = desk.ledger.get(claim.job.id)
        assert job.status == status
        for again in END.values():
            assert again(desk.ledger, claim) == status
        assert desk.ledger.requeue(claim, crashed=True) == status
        assert desk.ledger.beat(claim, HALF_WAY) == "lost"
        for refused in (
            lambda: desk.ledger.begin_upload(claim),
            lambda: desk.ledger.remember(claim, {"step": 1}),
        ):
            with pytest.raises(LeaseLost):
                refused()
        desk.lose_lease()
        assert desk.ledger.get(claim.job.id) == job

    def test_an_ended_job_is_not_claimed_again(self, desk: Desk):
        claim = desk.start()
        desk.ledger.succeed(claim, a_result(claim), {})
        assert desk.ledger.claim("b", LEASE_S) is None


def _acknowledged(ledger: Ledger, claim: Claim) -> str:
    ledger.acknowledge_cancel(claim)
    return ledger.get(claim.job.id).status


END = {
    "succeed": lambda ledger, claim: ledger.succeed(claim, a_result(claim), {}),
    "fail": lambda ledger, claim: ledger.fail(claim, GenerationFailed("no"), {}),
    "acknowledge_cancel": _acknowledged,
}


class TestCancel:
    def test_a_queued_job_is_cancelled_at_once(self, desk: Desk):
        job = desk.submit()
        cancelled = desk.ledger.cancel(job.id)
        assert cancelled.status == "cancelled"
        assert cancelled == desk.ledger.get(job.id)
        assert desk.ledger.claim("a", LEASE_S) is None

    def test_a_running_job_goes_on_until_its_holder_hears_of_it(self, desk: Desk):
        claim = desk.start()
        cancelled = desk.ledger.cancel(claim.job.id)
        assert (cancelled.status, cancelled.cancel_requested) == ("running", True)
        assert desk.ledger.beat(claim) == "cancel"
        desk.ledger.acknowledge_cancel(claim)
        assert desk.ledger.get(claim.job.id).status == "cancelled"

    def test_a_cancelled_job_never_becomes_succeeded(self, desk: Desk):
        claim = desk.start()
        desk.ledger.begin_upload(claim)
        desk.ledger.cancel(claim.job.id)
        assert desk.ledger.succeed(claim, a_result(claim), {}) == "cancelled"
        job = desk.ledger.get(claim.job.id)
        assert (job.status, job.result) == ("cancelled", None)

    def test_a_cancelled_job_does_not_become_failed_either(self, desk: Desk):
        claim = desk.start()
        desk.ledger.cancel(claim.job.id)
        assert desk.ledger.fail(claim, GenerationFailed("no"), {}) == "cancelled"
        assert desk.ledger.get(claim.job.id).error is None

    @pytest.mark.parametrize("crashed", [True, False])
    def test_a_cancelled_job_is_not_requeued(self, desk: Desk, crashed: bool):
        claim = desk.start()
        desk.ledger.cancel(claim.job.id)
        assert desk.ledger.requeue(claim, crashed=crashed) == "cancelled"

    def test_a_cancelled_job_whose_holder_died_ends_with_the_lease(self, desk: Desk):
        claim = desk.start()
        desk.ledger.cancel(claim.job.id)
        desk.lose_lease()
        assert desk.ledger.get(claim.job.id).status == "cancelled"

    def test_cancelling_twice_is_cancelling_once(self, desk: Desk):
        job = desk.submit()
        assert desk.ledger.cancel(job.id) == desk.ledger.cancel(job.id)

    @pytest.mark.parametrize("end", ["succeed", "fail"])
    def test_what_succeeded_or_failed_cannot_be_cancelled(self, desk: Desk, end: str):
        claim = desk.start()
        END[end](desk.ledger, claim)
        with pytest.raises(JobEnded):
            desk.ledger.cancel(claim.job.id)


class TestRequeue:
    def test_a_crash_uses_up_an_attempt(self, desk: Desk):
        claim = desk.start()
        desk.ledger.beat(claim, HALF_WAY)
        assert desk.ledger.requeue(claim, crashed=True) == "queued"
        job = desk.ledger.get(claim.job.id)
        assert (job.attempt, job.group, job.progress) == (1, None, None)
        assert desk.claim().attempt == 2

    def test_a_drain_gives_its_attempt_back(self, desk: Desk):
        claim = desk.start()
        assert desk.ledger.requeue(claim, crashed=False) == "queued"
        assert desk.ledger.get(claim.job.id).attempt == 0
        assert desk.claim().job.attempt == 1

    def test_no_two_claims_store_under_the_same_keys_even_after_a_drain(self, desk: Desk):
        desk.submit()
        keys = []
        for crashed in (False, False, True):
            claim = desk.claim()
            keys.append(video_key(claim.job.id, claim.attempt))
            desk.ledger.requeue(claim, crashed=crashed)
        assert len(set(keys)) == 3

    def test_the_last_crash_fails_the_job(self, redis: Redis):
        desk = Desk.open(redis, max_attempts=3)
        desk.submit(id="poison")
        outcomes = [desk.ledger.requeue(desk.claim(), crashed=True) for _ in range(3)]
        assert outcomes == ["queued", "queued", "failed"]
        job = desk.ledger.get("poison")
        assert job.error is not None
        assert (job.error.code, job.error.retryable, job.attempt) == ("worker_crashed", True, 3)
        assert desk.ledger.claim("a", LEASE_S) is None

    def test_drains_never_fail_a_job(self, redis: Redis):
        desk = Desk.open(redis, max_attempts=1)
        desk.submit()
        assert {desk.ledger.requeue(desk.claim(), crashed=False) for _ in range(10)} == {"queued"}

    def test_the_first_start_stays_the_start(self, desk: Desk):
        claim = desk.start()
        desk.ledger.requeue(claim, crashed=True)
        desk.clock.advance(10)
        assert desk.claim().job.started_at == claim.job.started_at


class TestFence:
    def test_every_claim_has_a_higher_fence(self, desk: Desk):
        desk.submit()
        fences = []
        for _ in range(3):
            claim = desk.claim()
            fences.append(claim.fence)
            desk.ledger.requeue(claim, crashed=False)
        assert fences == sorted(set(fences))

    @pytest.mark.parametrize("taken_again", [True, False])
    def test_who_lost_the_lease_can_change_nothing(self, desk: Desk, taken_again: bool):
        claim = desk.start()
        desk.lose_lease()
        if taken_again:
            desk.claim("b")
        job = desk.ledger.get(claim.job.id)
        assert desk.ledger.beat(claim, HALF_WAY) == "lost"
        for refused in (
            lambda: desk.ledger.begin_upload(claim),
            lambda: desk.ledger.remember(claim, {"step": 1}),
            lambda: desk.ledger.succeed(claim, a_result(claim), {}),
            lambda: desk.ledger.fail(claim, GenerationFailed("no"), {}),
            lambda: desk.ledger.acknowledge_cancel(claim),
            lambda: desk.ledger.requeue(claim, crashed=True),
        ):
            with pytest.raises(LeaseLost):
                refused()
        assert desk.ledger.get(claim.job.id) == job

    def test_who_lost_the_lease_on_the_last_attempt_cannot_end_the_failed_job(self, redis: Redis):
        desk = Desk.open(redis, max_attempts=1)
        claim = desk.start()
        desk.lose_lease()
        with pytest.raises(LeaseLost):
            desk.ledger.succeed(claim, a_result(claim), {})
        assert desk.ledger.get(claim.job.id).status == "failed"

    def test_of_two_holders_one_commits(self, desk: Desk):
        zombie = desk.start()
        desk.lose_lease()
        holder = desk.claim("b")
        assert desk.ledger.succeed(holder, a_result(holder), {}) == "succeeded"
        with pytest.raises(LeaseLost):
            desk.ledger.succeed(zombie, a_result(zombie), {})
        assert desk.ledger.get(holder.job.id).result == a_result(holder)


class TestDelete:
    def test_a_deleted_job_is_gone_and_its_files_are_to_be_removed(self, desk: Desk):
        job = desk.submit()
        assert desk.ledger.delete(job.id) is True
        with pytest.raises(JobNotFound):
            desk.ledger.get(job.id)
        assert desk.ledger.page() == []
        assert desk.ledger.claim("a", LEASE_S) is None
        assert desk.ledger.removals().keys() == {job.id}

    def test_deleting_twice_is_deleting_once(self, desk: Desk):
        job = desk.submit()
        desk.ledger.delete(job.id)
        with pytest.raises(JobNotFound):
            desk.ledger.delete(job.id)
        assert desk.ledger.removals().keys() == {job.id}

    def test_a_running_job_is_cancelled_and_goes_when_its_holder_lets_go(self, desk: Desk):
        claim = desk.start()
        assert desk.ledger.delete(claim.job.id) is False
        assert desk.ledger.get(claim.job.id).cancel_requested
        assert desk.ledger.removals() == {}
        assert desk.ledger.beat(claim) == "cancel"
        desk.ledger.acknowledge_cancel(claim)
        with pytest.raises(JobNotFound):
            desk.ledger.get(claim.job.id)
        assert desk.ledger.removals().keys() == {claim.job.id}

    def test_a_running_job_whose_holder_died_goes_with_the_lease(self, desk: Desk):
        claim = desk.start()
        desk.ledger.delete(claim.job.id)
        desk.lose_lease()
        assert desk.ledger.removals().keys() == {claim.job.id}
        assert desk.ledger.beat(claim) == "lost"

    def test_nothing_of_a_deleted_job_stays_in_redis_once_its_files_are_removed(
        self, redis: Redis, desk: Desk
    ):
        claim = desk.start(owner="me", max_queue_s=9)
        desk.ledger.succeed(claim, a_result(claim), {})
        desk.ledger.delete(claim.job.id)
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
        assert desk.ledger.beat(claim) == "go"
        desk.clock.advance(1)
        assert desk.ledger.beat(claim) == "deadline"

    def test_time_in_the_queue_is_not_run_time_but_earlier_attempts_are(self, desk: Desk):
        claim = desk.start(max_run_s=10)
        desk.clock.advance(6)
        desk.ledger.requeue(claim, crashed=True)
        desk.clock.advance(1000)
        claim = desk.claim()
        desk.clock.advance(4)
        assert desk.ledger.beat(claim) == "go"
        desk.clock.advance(1)
        assert desk.ledger.beat(claim) == "deadline"

    def test_an_upload_is_not_bounded_by_it(self, desk: Desk):
        claim = desk.start(max_run_s=10)
        desk.ledger.begin_upload(claim)
        desk.clock.advance(20)
        assert desk.ledger.beat(claim) == "go"

    def test_cancel_comes_before_the_deadline(self, desk: Desk):
        claim = desk.start(max_run_s=10)
        desk.clock.advance(20)
        desk.ledger.cancel(claim.job.id)
        assert desk.ledger.beat(claim) == "cancel"


class TestViews:
    def test_pages_go_from_the_newest_and_continue_behind_a_job(self, desk: Desk):
        ids = [desk.submit().id for _ in range(5)]
        first = [job.id for job in desk.ledger.page(limit=2)]
        assert first == [ids[4], ids[3]]
        assert [job.id for job in desk.ledger.page(limit=2, after=first[-1])] == [ids[2], ids[1]]
        assert [job.id for job in desk.ledger.page(after=ids[1], newest_first=False)] == ids[2:]

    def test_pages_can_be_of_one_status_and_one_owner(self, desk: Desk):
        mine = desk.submit(owner="me")
        yours = desk.submit(owner="you")
        running = desk.claim()
        nobodys = desk.submit()
        assert running.job.id == mine.id
        assert [job.id for job in desk.ledger.page(status="queued")] == [nobodys.id, yours.id]
        assert [job.id for job in desk.ledger.of("me").page()] == [mine.id]
        assert [job.id for job in desk.ledger.of("").page()] == [nobodys.id]
        assert desk.ledger.of("me").page(status="queued") == []

    def test_a_page_can_continue_behind_a_job_that_changed_its_status(self, desk: Desk):
        first, second = desk.submit(), desk.submit()
        desk.ledger.cancel(second.id)
        assert [job.id for job in desk.ledger.page(status="queued", after=second.id)] == [first.id]

    def test_a_page_cannot_continue_behind_a_job_that_is_not_there(self, ledger: Ledger):
        with pytest.raises(JobNotFound):
            ledger.page(after="nothing")

    def test_an_empty_page_was_asked_for(self, desk: Desk):
        desk.submit()
        assert desk.ledger.page(limit=0) == []

    def test_counts_tell_how_many_jobs_are_in_each_status(self, desk: Desk):
        for _ in range(4):
            desk.submit()
        desk.ledger.begin_upload(desk.claim())
        desk.ledger.fail(desk.claim(), GenerationFailed("no"), {})
        assert desk.ledger.counts() == {
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
        desk.ledger.beat(claim, HALF_WAY)
        desk.ledger.begin_upload(claim)
        desk.ledger.succeed(claim, a_result(claim), {})
        events = desk.ledger.events(claim.job.id)
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
        [first] = desk.ledger.events(job.id)
        assert desk.ledger.events(job.id, after=first.id) == []
        desk.claim()
        [second] = desk.ledger.events(job.id, after=first.id)
        assert second.status == "running"

    def test_the_stream_does_not_grow_with_the_job(self, redis: Redis, desk: Desk):
        claim = desk.start()
        for step in range(500):
            desk.ledger.beat(claim, Progress(phase="denoise", step=step))
        assert 200 <= redis.xlen(f"longcat:events:{claim.job.id}") < 400
        last = desk.ledger.events(claim.job.id)[-1].progress
        assert last is not None
        assert last.step == 499

    def test_a_job_that_is_not_there_has_none(self, ledger: Ledger):
        assert ledger.events("nothing", wait_s=0.01) == []
