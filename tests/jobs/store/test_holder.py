"""A holder claims a job, keeps its lease, and ends it; holders that lost their lease change nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from redis import Redis

from jobs.errors import GenerationFailed, LeaseLost
from jobs.record import JobError, Progress
from jobs.storage.keys import video_key
from jobs.store.holder import Lease
from tests.jobs.examples import LEASE_S, Clock, ExampleStore, a_result

HALF_WAY = Progress(phase="denoise", step=25, num_steps=50, fraction=0.5, eta_s=60.0)


def at(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock.now_ms / 1000, UTC)


class TestHolding:
    def test_claimed_job_runs_in_its_group(self, store: ExampleStore):
        created_at = at(store.clock)
        store.submit(id="abc")
        store.clock.advance(3)
        claim = store.claim("group 1")
        assert claim.job == store.client.get("abc")
        assert (claim.job.status, claim.job.group, claim.fence) == ("running", "group 1", 1)
        assert (claim.job.created_at, claim.job.started_at) == (created_at, at(store.clock))
        assert claim.checkpoint is None

    def test_renewal_stores_progress(self, store: ExampleStore):
        claim = store.start()
        assert store.holder.renew_lease(claim, HALF_WAY) is None
        assert store.client.get(claim.job.id).progress == HALF_WAY

    def test_renewal_without_progress_keeps_the_old_progress(self, store: ExampleStore):
        claim = store.start()
        store.holder.renew_lease(claim, HALF_WAY)
        store.holder.renew_lease(claim)
        assert store.client.get(claim.job.id).progress == HALF_WAY

    def test_renewals_keep_the_lease(self, store: ExampleStore):
        claim = store.start()
        for _ in range(100):
            store.clock.advance(LEASE_S - 1)
            store.maintenance.sweep()
            assert store.holder.renew_lease(claim) is None

    def test_renewals_keep_the_lease_during_an_upload(self, store: ExampleStore):
        claim = store.start()
        store.holder.begin_upload(claim)
        for _ in range(5):
            store.clock.advance(LEASE_S / 4)
            store.maintenance.sweep()
            assert store.holder.renew_lease(claim) is None

    def test_late_renewal_keeps_a_lease_that_no_sweep_ended(self, store: ExampleStore):
        claim = store.start()
        store.clock.advance(LEASE_S + 5)
        assert store.holder.renew_lease(claim) is None
        assert store.maintenance.sweep().requeued == ()

    def test_job_is_uploading_until_it_ends(self, store: ExampleStore):
        claim = store.start()
        store.holder.begin_upload(claim)
        assert store.client.get(claim.job.id).status == "uploading"
        assert store.holder.renew_lease(claim) is None
        assert store.holder.succeed(claim, a_result(claim), {}) == "succeeded"

    def test_group_may_hold_several_jobs(self, store: ExampleStore):
        uploading = store.start(id="one")
        store.holder.begin_upload(uploading)
        running = store.start(id="two")
        assert [store.holder.renew_lease(uploading), store.holder.renew_lease(running)] == [
            None,
            None,
        ]

    def test_next_claim_gets_the_checkpoint(self, store: ExampleStore):
        claim = store.start()
        store.holder.save_checkpoint(claim, {"key": "state/1", "step": 10})
        store.holder.save_checkpoint(claim, {"key": "state/2", "step": 20})
        store.holder.requeue(claim, crashed=True)
        assert store.claim().checkpoint == {"key": "state/2", "step": 20}


class TestEnds:
    def test_succeeded_job_shows_result_timings_and_expiry(self, redis: Redis):
        store = ExampleStore(redis, retention_s=100)
        claim = store.start()
        store.holder.renew_lease(claim, HALF_WAY)
        assert store.holder.succeed(claim, a_result(claim), {"denoise": 1.5}) == "succeeded"
        job = store.client.get(claim.job.id)
        assert (job.status, job.result, job.timings_s) == ("succeeded", a_result(claim), {"denoise": 1.5})
        assert job.finished_at == at(store.clock)
        assert job.expires_at is not None
        assert (job.expires_at - job.finished_at).total_seconds() == 100
        assert job.progress == HALF_WAY.model_copy(update={"fraction": 1.0, "eta_s": 0.0})

    def test_failed_job_shows_its_error(self, store: ExampleStore):
        claim = store.start()
        assert (
            store.holder.fail(claim, GenerationFailed("the prompt has no words"), {"encode": 0.1}) == "failed"
        )
        job = store.client.get(claim.job.id)
        assert job.error == JobError(
            code="generation_failed", message="the prompt has no words", retryable=False
        )
        assert job.timings_s == {"encode": 0.1}

    def test_stored_error_of_a_rank_is_kept_unchanged(self, store: ExampleStore):
        error = JobError(code="out_of_memory", message="rank 3", retryable=False)
        claim = store.start()
        store.holder.fail(claim, error, {})
        assert store.client.get(claim.job.id).error == error

    @pytest.mark.parametrize("end", ["succeed", "fail", "confirm_cancel"])
    def test_final_state_never_changes(self, store: ExampleStore, end: str):
        claim = store.start()
        status = END[end](store, claim)
        job = store.client.get(claim.job.id)
        assert job.status == status
        for again in END.values():
            assert again(store, claim) == status
        assert store.holder.requeue(claim, crashed=True) == status
        assert store.holder.renew_lease(claim, HALF_WAY) == "lease_lost"
        for refused in (
            lambda: store.holder.begin_upload(claim),
            lambda: store.holder.save_checkpoint(claim, {"step": 1}),
        ):
            with pytest.raises(LeaseLost):
                refused()
        store.lose_lease()
        assert store.client.get(claim.job.id) == job

    def test_ended_job_is_not_claimed_again(self, store: ExampleStore):
        claim = store.start()
        store.holder.succeed(claim, a_result(claim), {})
        assert store.holder.claim("b", LEASE_S) is None


def _acknowledged(store: ExampleStore, claim: Lease) -> str:
    store.holder.confirm_cancel(claim)
    return store.client.get(claim.job.id).status


END = {
    "succeed": lambda store, claim: store.holder.succeed(claim, a_result(claim), {}),
    "fail": lambda store, claim: store.holder.fail(claim, GenerationFailed("no"), {}),
    "confirm_cancel": _acknowledged,
}


class TestRequeue:
    def test_crash_uses_up_an_attempt(self, store: ExampleStore):
        claim = store.start()
        store.holder.renew_lease(claim, HALF_WAY)
        assert store.holder.requeue(claim, crashed=True) == "queued"
        job = store.client.get(claim.job.id)
        assert (job.attempt, job.group, job.progress) == (1, None, None)
        assert store.claim().job.attempt == 2

    @pytest.mark.parametrize("crashed", [True, False])
    def test_requeued_job_shows_the_progress_that_is_saved(self, store: ExampleStore, crashed: bool):
        claim = store.start()
        store.holder.save_checkpoint(claim, {"fraction": 0.4})
        store.holder.renew_lease(claim, HALF_WAY.model_copy(update={"segment": 1, "num_segments": 3}))
        store.holder.requeue(claim, crashed=crashed)
        saved = Progress(phase="load", segment=1, num_segments=3, fraction=0.4)
        assert store.client.get(claim.job.id).progress == saved
        assert store.client.events(claim.job.id)[-1].progress == saved
        again = store.claim()
        assert again.job.progress == saved
        store.holder.requeue(again, crashed=crashed)
        assert store.client.get(claim.job.id).progress == saved

    @pytest.mark.parametrize("checkpoint", [{}, {"step": 3}, {"fraction": 0.0}, {"fraction": "a half"}])
    def test_requeued_job_of_which_nothing_is_saved_shows_no_progress(
        self, store: ExampleStore, checkpoint: dict[str, object]
    ):
        claim = store.start()
        store.holder.save_checkpoint(claim, {"fraction": 0.4})
        store.holder.renew_lease(claim, HALF_WAY)
        store.holder.save_checkpoint(claim, checkpoint)
        store.holder.requeue(claim, crashed=True)
        assert store.client.get(claim.job.id).progress is None

    def test_drain_does_not_use_up_an_attempt(self, store: ExampleStore):
        claim = store.start()
        assert store.holder.requeue(claim, crashed=False) == "queued"
        assert store.client.get(claim.job.id).attempt == 0
        assert store.claim().job.attempt == 1

    def test_claims_never_share_storage_keys(self, store: ExampleStore):
        store.submit()
        keys = []
        for crashed in (False, False, True):
            claim = store.claim()
            keys.append(video_key(claim.job.id, claim.fence))
            store.holder.requeue(claim, crashed=crashed)
        assert len(set(keys)) == 3

    def test_last_crash_fails_the_job(self, redis: Redis):
        store = ExampleStore(redis, max_attempts=3)
        store.submit(id="poison")
        outcomes = [store.holder.requeue(store.claim(), crashed=True) for _ in range(3)]
        assert outcomes == ["queued", "queued", "failed"]
        job = store.client.get("poison")
        assert job.error is not None
        assert (job.error.code, job.error.retryable, job.attempt) == ("worker_crashed", True, 3)
        assert store.holder.claim("a", LEASE_S) is None

    def test_drains_never_fail_a_job(self, redis: Redis):
        store = ExampleStore(redis, max_attempts=1)
        store.submit()
        assert {store.holder.requeue(store.claim(), crashed=False) for _ in range(10)} == {"queued"}

    def test_first_start_time_is_kept(self, store: ExampleStore):
        claim = store.start()
        store.holder.requeue(claim, crashed=True)
        store.clock.advance(10)
        assert store.claim().job.started_at == claim.job.started_at


class TestFence:
    def test_every_claim_has_a_higher_fence(self, store: ExampleStore):
        store.submit()
        fences = []
        for _ in range(3):
            claim = store.claim()
            fences.append(claim.fence)
            store.holder.requeue(claim, crashed=False)
        assert fences == sorted(set(fences))

    @pytest.mark.parametrize("taken_again", [True, False])
    def test_holder_without_lease_changes_nothing(self, store: ExampleStore, taken_again: bool):
        claim = store.start()
        store.lose_lease()
        if taken_again:
            store.claim("b")
        job = store.client.get(claim.job.id)
        assert store.holder.renew_lease(claim, HALF_WAY) == "lease_lost"
        for refused in (
            lambda: store.holder.begin_upload(claim),
            lambda: store.holder.save_checkpoint(claim, {"step": 1}),
            lambda: store.holder.succeed(claim, a_result(claim), {}),
            lambda: store.holder.fail(claim, GenerationFailed("no"), {}),
            lambda: store.holder.confirm_cancel(claim),
            lambda: store.holder.requeue(claim, crashed=True),
        ):
            with pytest.raises(LeaseLost):
                refused()
        assert store.client.get(claim.job.id) == job

    def test_holder_without_lease_cannot_end_a_failed_job(self, redis: Redis):
        store = ExampleStore(redis, max_attempts=1)
        claim = store.start()
        store.lose_lease()
        with pytest.raises(LeaseLost):
            store.holder.succeed(claim, a_result(claim), {})
        assert store.client.get(claim.job.id).status == "failed"

    def test_only_one_of_two_holders_commits(self, store: ExampleStore):
        zombie = store.start()
        store.lose_lease()
        holder = store.claim("b")
        assert store.holder.succeed(holder, a_result(holder), {}) == "succeeded"
        with pytest.raises(LeaseLost):
            store.holder.succeed(zombie, a_result(zombie), {})
        assert store.client.get(holder.job.id).result == a_result(holder)


class TestRunDeadline:
    def test_job_that_runs_too_long_is_told_to_stop(self, store: ExampleStore):
        claim = store.start(max_run_s=10)
        store.clock.advance(10)
        assert store.holder.renew_lease(claim) is None
        store.clock.advance(1)
        assert store.holder.renew_lease(claim) == "deadline"

    def test_run_time_includes_earlier_attempts_but_no_waits(self, store: ExampleStore):
        claim = store.start(max_run_s=10)
        store.clock.advance(6)
        store.holder.requeue(claim, crashed=True)
        store.clock.advance(1000)
        claim = store.claim()
        store.clock.advance(4)
        assert store.holder.renew_lease(claim) is None
        store.clock.advance(1)
        assert store.holder.renew_lease(claim) == "deadline"

    def test_run_time_does_not_include_waits_for_gpus(self, store: ExampleStore):
        claim = store.start(max_run_s=10)
        for seconds, num_gpus in ((3, 0), (100, 2), (4, 0), (100, 1)):
            store.clock.advance(seconds)
            assert store.holder.renew_lease(claim, num_gpus=num_gpus) is None
        store.clock.advance(3)
        assert store.holder.renew_lease(claim) is None
        store.clock.advance(1)
        assert store.holder.renew_lease(claim) == "deadline"

    def test_job_that_is_requeued_while_it_waits_for_gpus_has_run_until_it_waited(self, store: ExampleStore):
        claim = store.start(max_run_s=10)
        store.clock.advance(6)
        store.holder.renew_lease(claim, num_gpus=0)
        store.clock.advance(100)
        assert store.holder.renew_lease(claim) is None
        store.holder.requeue(claim, crashed=False)
        claim = store.claim()
        store.clock.advance(4)
        assert store.holder.renew_lease(claim) is None
        store.clock.advance(1)
        assert store.holder.renew_lease(claim) == "deadline"

    def test_run_deadline_does_not_apply_to_uploads(self, store: ExampleStore):
        claim = store.start(max_run_s=10)
        store.holder.begin_upload(claim)
        store.clock.advance(20)
        assert store.holder.renew_lease(claim) is None

    def test_cancel_comes_before_the_deadline(self, store: ExampleStore):
        claim = store.start(max_run_s=10)
        store.clock.advance(20)
        store.client.cancel(claim.job.id)
        assert store.holder.renew_lease(claim) == "cancel"
