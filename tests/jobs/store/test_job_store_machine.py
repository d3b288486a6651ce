"""Check random interleavings of clients, holders, former holders and sweeps against a model of the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import floor
from typing import Any, get_args

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from jobs.capability import Capability
from jobs.errors import GenerationFailed, JobEnded, JobNotFound, LeaseLost
from jobs.order import Order, Priority
from jobs.record import ENDED, Progress, Status
from jobs.registration import GroupRegistration
from jobs.store.holder import Lease
from jobs.store.quotas import Quotas
from jobs.work import work_units
from tests.jobs.examples import LATE_UPLOAD_S, LEASE_S, ORDER, ExampleStore, a_result, a_submission, keys_of
from tests.orders import make_order

MAX_ATTEMPTS = 2
RETENTION_S = 1000
PRIORITIES: list[Priority] = ["high", "normal", "low"]
LEASE_MS = round(LEASE_S * 1000)
PREEMPT_AFTER_S = 5.0
AGEING_S = 60.0
DAY_MS = 86_400_000
NUMBERS = st.integers(0, 19)
DEFAULT_DEADLINE_S = 1.5e8
DEADLINES_S = st.sampled_from([None, None, 30, 1e8, 2e8])
"""One that is often missed, and some before and behind jobs without a deadline."""
WEIGHTS = {"x": 1.0, "y": 2.0, "z": 0.5}
"""The weights of owners."""


@dataclass(frozen=True)
class OwnerQueue:
    """The queued jobs of one owner and priority."""

    priority: Priority
    owner: str


@dataclass
class Expected:
    """The expected state of a job; `holder` is the fencing token of its holder.

    Removal of its files is due if `first_removal_due`, and once more at `second_removal_ms`.
    """

    queue: OwnerQueue
    number: int
    start_by_ms: int | None
    created_ms: int
    queued_ms: int
    work_units: int
    queue_deadline_ms: int | None
    status: Status = "queued"
    attempt: int = 0
    holder: int | None = None
    fence: int = 0
    lease_ms: int = 0
    lease_grace: bool = False
    has_started: bool = False
    started_by_ageing: bool = False
    lease_ran_out: bool = False
    cancel_requested: bool = False
    delete_requested: bool = False
    removed: bool = False
    expires_ms: int = 0
    first_removal_due: bool = False
    second_removal_ms: int | None = None
    checkpoint: dict[str, Any] | None = None
    group: str | None = None
    preempt_requested: bool = False
    preempts: bool = False
    distilled: bool = False
    charge: int = 0
    num_gpus_since_ms: int = 0
    gpu_ms: int = 0
    num_gpus: int = 1
    expected_gpu_ms: int = 0
    is_settled: bool = False
    ends: list[Status] = field(default_factory=list)

    def stop_running(self, now_ms: int) -> None:
        if self.status == "running":
            self.gpu_ms += (now_ms - self.num_gpus_since_ms) * self.num_gpus

    def end(self, status: Status, now_ms: int) -> str:
        self.stop_running(now_ms)
        self.status = "cancelled" if self.cancel_requested else status
        self.ends.append(self.status)
        self.holder = None
        self.expires_ms = now_ms + RETENTION_S * 1000
        self.first_removal_due = self.has_started
        if self.delete_requested:
            self.remove()
        return self.status

    def effective_time(self) -> tuple[float, int]:
        num_above = PRIORITIES.index(self.queue.priority)
        return self.queued_ms + num_above * AGEING_S * 1000, num_above

    def move_if_late(self, now_ms: int) -> None:
        if self.start_by_ms is not None and self.start_by_ms < now_ms and self.status == "queued":
            self.start_by_ms = None

    def place(self) -> tuple[float, int]:
        """Return the place among the jobs of its owner: when it should start, then the number."""
        return self.start_by_ms or self.created_ms + DEFAULT_DEADLINE_S * 1000, self.number

    def remove(self) -> None:
        self.removed = self.first_removal_due = True

    def removal_is_due(self, now_ms: int) -> bool:
        return self.first_removal_due or (
            self.second_removal_ms is not None and self.second_removal_ms <= now_ms
        )

    def requeue(self, now_ms: int, *, crashed: bool) -> str:
        if self.cancel_requested:
            return self.end("cancelled", now_ms)
        if crashed and self.attempt == MAX_ATTEMPTS:
            return self.end("failed", now_ms)
        self.stop_running(now_ms)
        self.status, self.holder, self.queued_ms = "queued", None, now_ms
        self.preempt_requested = self.preempts = False
        self.attempt -= not crashed
        return "queued"


CAPABILITIES = {
    "p": Capability(
        model="plain",
        tasks=("text_to_video",),
        limits={},
        device="cpu",
        dtype="float32",
        context_parallel=2,
    )
}
"""Group p has two GPUs and no LoRAs; the others have one and can run all jobs."""


class JobStoreMachine(RuleBasedStateMachine):
    """Run several actors on one store. It keeps every claim, so that former holders act too."""

    def __init__(self, redis: Redis, owner_running_jobs: int | None) -> None:
        super().__init__()
        redis.flushall()
        self.redis = redis
        self.owner_running_jobs = owner_running_jobs
        self.store = ExampleStore(
            redis,
            retention_s=RETENTION_S,
            max_attempts=MAX_ATTEMPTS,
            quotas=Quotas(owner_running_jobs=owner_running_jobs),
        )
        self.store.maintenance.sweep()
        self.expected: dict[str, Expected] = {}
        self.virtual_start: dict[OwnerQueue, int] = {}
        self.virtual_time: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self.recent_work_units = self.recent_gpu_ms = 0.0
        self.groups = {group: GroupRegistration(redis, group, ttl_s=600) for group in "abp"}
        self.current: dict[str, str] = {}
        self.claims: list[Lease] = []
        self.swept_ms = self.now_ms

    @property
    def now_ms(self) -> int:
        return self.store.clock.now_ms

    @initialize(priorities=st.lists(st.sampled_from(PRIORITIES), min_size=2, max_size=2))
    def begin(self, priorities: list[Priority]) -> None:
        """Begin with queued and claimed jobs, because Hypothesis leaves out some rules in each run."""
        for owner in "xx":
            self.submit("low", owner, None)
        self.claim_several("ab")
        for priority, owner in zip(priorities, "yz", strict=True):
            self.submit(priority, owner, None)

    @rule(
        priority=st.sampled_from(PRIORITIES),
        owner=st.sampled_from("xyz"),
        waits=st.sampled_from([None, 60]),
        distilled=st.booleans(),
        num_segments=st.sampled_from([1, 3]),
        deadline_s=DEADLINES_S,
    )
    def submit_one(
        self,
        priority: Priority,
        owner: str,
        waits: int | None,
        distilled: bool,
        num_segments: int,
        deadline_s: float | None,
    ) -> None:
        order = make_order(ORDER, distilled=distilled, num_segments=num_segments)
        self.submit(priority, owner, waits, order, deadline_s)

    def submit(
        self,
        priority: Priority,
        owner: str,
        waits: int | None,
        order: Order = ORDER,
        deadline_s: float | None = None,
    ) -> str:
        weight = WEIGHTS[owner]
        wanted = a_submission(
            priority=priority,
            owner=owner,
            max_queue_s=waits,
            order=order,
            weight=weight,
            ageing_s=AGEING_S,
            deadline_s=deadline_s,
            default_deadline_s=DEFAULT_DEADLINE_S,
        )
        self.move_late_jobs()
        prediction = self.store.client.predict(wanted)
        job = self.store.client.submit(replace(wanted, expected_run_s=prediction.run_s)).job
        assert self.store.position(job.id) == prediction.position
        start_by_ms = None
        if deadline_s is not None:
            start_by_ms = self.now_ms + round(deadline_s * 1000) - round((prediction.run_s or 0) * 1000)
        size = work_units(order.plan)
        queue_deadline_ms = self.now_ms + waits * 1000 if waits else None
        queue = OwnerQueue(priority, owner)
        if not any(other.queue == queue and not other.has_started for other in self.queued().values()):
            self.virtual_start[queue] = max(self.virtual_start.get(queue, 0), self.virtual_time[priority])
        self.expected[job.id] = Expected(
            queue,
            len(self.expected),
            start_by_ms,
            self.now_ms,
            self.now_ms,
            size,
            queue_deadline_ms,
            distilled=order.plan.distilled,
            charge=_charge(size, owner),
            expected_gpu_ms=self.expected_gpu_ms(size),
        )
        self.expected[job.id].move_if_late(self.now_ms)
        return job.id

    @rule(job_number=NUMBERS)
    def submit_again(self, job_number: int) -> None:
        job_id = self.choose_job(job_number)
        if not self.expected[job_id].removed:
            assert self.store.submit(id=job_id).status == self.expected[job_id].status

    @rule(groups=st.sampled_from(["a", "ab", "bab", "p", "pap"]))
    def claim_several(self, groups: str) -> None:
        for group in groups:
            self.claim(group)

    def claim(self, group: str) -> None:
        self.move_late_jobs()
        next_id = self.expected_next(group)
        claim = self.store.holder.claim(group, LEASE_S, CAPABILITIES.get(group))
        if next_id is None:
            assert claim is None
            return
        assert claim is not None
        job = self.expected[next_id]
        assert claim.job.id == next_id
        self.groups[group].heartbeat("busy", ranks=1, job=claim.job.id)
        self.current[group] = claim.job.id
        job.group = group
        if not job.has_started:
            start = self.virtual_start[job.queue]
            self.virtual_start[job.queue] = start + job.charge
            self.virtual_time[job.queue.priority] = max(start, self.virtual_time[job.queue.priority])
            self.forget_passed_owners(job.queue.priority)
        job.has_started = True
        job.started_by_ageing = self.now_ms - job.queued_ms >= 2 * AGEING_S * 1000
        assert claim.fence == job.fence + 1
        assert claim.checkpoint == job.checkpoint
        job.num_gpus_since_ms, job.num_gpus = self.now_ms, 2 if group == "p" else 1
        job.status, job.holder, job.fence, job.lease_ran_out = "running", claim.fence, claim.fence, False
        job.attempt += 1
        job.lease_ms, job.lease_grace, job.queue_deadline_ms = self.now_ms + LEASE_MS, False, None
        self.claims.append(claim)

    @rule(
        claim_number=NUMBERS,
        step=st.integers(0, 50),
        preempt_after_s=st.sampled_from([None, PREEMPT_AFTER_S]),
        num_gpus=st.sampled_from([None, 1, 2, 4]),
    )
    def renew_lease(
        self, claim_number: int, step: int, preempt_after_s: float | None, num_gpus: int | None
    ) -> None:
        claim = self.choose_claim(claim_number)
        progress = Progress(phase="denoise", step=step)
        stop_reason = self.store.holder.renew_lease(claim, progress, preempt_after_s, num_gpus)
        job = self.held(claim)
        if job is None:
            assert stop_reason == "lease_lost"
        else:
            job.lease_ms, job.lease_grace = self.now_ms + LEASE_MS, False
            if num_gpus not in {None, job.num_gpus} and job.status == "running":
                job.stop_running(self.now_ms)
                job.num_gpus_since_ms, job.num_gpus = self.now_ms, num_gpus
            if job.cancel_requested:
                assert stop_reason == "cancel"
            elif preempt_after_s is not None and self.is_preempted(claim.job.id, job):
                assert stop_reason == "preempt"
            else:
                assert stop_reason is None

    @rule(claim_number=NUMBERS, step=st.integers(0, 50))
    def save_checkpoint(self, claim_number: int, step: int) -> None:
        claim = self.choose_claim(claim_number)
        checkpoint = {"step": step}
        if self.accepted(claim, lambda: self.store.holder.save_checkpoint(claim, checkpoint)):
            self.expected[claim.job.id].checkpoint = checkpoint

    @rule(claim_number=NUMBERS)
    def begin_upload(self, claim_number: int) -> None:
        claim = self.choose_claim(claim_number)
        if self.accepted(claim, lambda: self.store.holder.begin_upload(claim)):
            self.expected[claim.job.id].stop_running(self.now_ms)
            self.expected[claim.job.id].status = "uploading"

    @rule(claim_number=NUMBERS, how=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def end(self, claim_number: int, how: Status) -> None:
        claim = self.choose_claim(claim_number)
        job = self.expected[claim.job.id]
        if job.status in ENDED and self.was_released(claim):
            assert self.finish(claim, how) in {job.status, None}
        elif self.accepted(claim, lambda: self.finish(claim, how)):
            job.end(how, self.now_ms)

    @rule(claim_number=NUMBERS, crashed=st.booleans())
    def requeue(self, claim_number: int, crashed: bool) -> None:
        claim = self.choose_claim(claim_number)
        job = self.expected[claim.job.id]
        if self.was_released(claim):
            assert self.store.holder.requeue(claim, crashed=crashed) == job.status
        elif self.accepted(claim, lambda: self.store.holder.requeue(claim, crashed=crashed)):
            job.requeue(self.now_ms, crashed=crashed)

    @rule(job_number=NUMBERS)
    def cancel(self, job_number: int) -> None:
        job_id = self.choose_job(job_number)
        job = self.expected[job_id]
        try:
            self.store.client.cancel(job_id)
        except JobNotFound:
            assert job.removed
        except JobEnded:
            assert job.status in {"succeeded", "failed"}
        else:
            if job.status == "queued":
                job.end("cancelled", self.now_ms)
            elif job.holder is not None:
                job.cancel_requested = True

    @rule(job_number=NUMBERS)
    def delete(self, job_number: int) -> None:
        job_id = self.choose_job(job_number)
        job = self.expected[job_id]
        try:
            removed = self.store.client.delete(job_id)
        except JobNotFound:
            assert job.removed
            return
        if job.holder is not None:
            assert not removed
            job.cancel_requested = job.delete_requested = True
            return
        assert removed
        if job.status == "queued":
            job.end("cancelled", self.now_ms)
        job.remove()

    @rule(claim_number=NUMBERS)
    def report_late_file(self, claim_number: int) -> None:
        claim = self.choose_claim(claim_number)
        self.store.maintenance.report_late_file(claim.job.id)
        job = self.expected[claim.job.id]
        if job.status in ENDED:
            job.first_removal_due = True

    @rule(seconds=st.sampled_from([1, 9, 11, LEASE_S, 61, LATE_UPLOAD_S, RETENTION_S]))
    def time_passes(self, seconds: float) -> None:
        self.store.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        away = self.now_ms - self.swept_ms > LEASE_MS / 3
        self.swept_ms = self.now_ms
        self.move_late_jobs()
        for job in self.present():
            if job.holder is not None and away and not job.lease_grace:
                job.lease_ms, job.lease_grace = max(job.lease_ms, self.now_ms + LEASE_MS), True
            if job.holder is not None and job.lease_ms <= self.now_ms:
                job.lease_ran_out = True
                job.requeue(self.now_ms, crashed=True)
            elif job.status == "queued" and (job.queue_deadline_ms or self.now_ms + 1) <= self.now_ms:
                job.end("failed", self.now_ms)
            elif job.status in ENDED and job.expires_ms <= self.now_ms:
                job.remove()
        self.store.maintenance.sweep()

    @rule()
    def remove_files(self) -> None:
        while removal := self.store.maintenance.lease_file_removal():
            job = self.expected[removal.job_id]
            if job.first_removal_due:
                job.first_removal_due = False
                job.second_removal_ms = self.now_ms + round(LATE_UPLOAD_S * 1000)
            else:
                job.second_removal_ms = None
            self.store.maintenance.confirm_file_removal(removal)

    def expected_gpu_ms(self, size: int) -> int:
        """Return the GPU time that a job of this size is expected to take, from recent jobs."""
        if not self.recent_work_units:
            return 0
        return floor(size * self.recent_gpu_ms / self.recent_work_units + 0.5)

    def forget_passed_owners(self, priority: Priority) -> None:
        """Forget the virtual start times that the virtual time has passed, of owners without queued jobs."""
        backlogged = {job.queue for job in self.queued().values() if not job.has_started}
        for queue, start in list(self.virtual_start.items()):
            is_passed = queue.priority == priority and start <= self.virtual_time[priority]
            if is_passed and queue not in backlogged:
                del self.virtual_start[queue]

    def settle(self) -> None:
        """Charge owners for the GPU time of the jobs that have ended, instead of for their work units."""
        for job in self.expected.values():
            if not job.ends or job.is_settled:
                continue
            job.is_settled = True
            if job.has_started and self.recent_gpu_ms and job.queue in self.virtual_start:
                units = job.gpu_ms * self.recent_work_units / self.recent_gpu_ms
                self.virtual_start[job.queue] += _charge(units, job.queue.owner) - job.charge
            if job.ends == ["succeeded"]:
                self.recent_work_units = self.recent_work_units * 0.95 + job.work_units
                self.recent_gpu_ms = self.recent_gpu_ms * 0.95 + job.gpu_ms

    @invariant()
    def every_job_has_its_expected_state(self) -> None:
        stored = {job.id: job for job in self.store.client.list_jobs(limit=1000)}
        assert stored.keys() == {job_id for job_id, job in self.expected.items() if not job.removed}
        for job_id, job in stored.items():
            expected = self.expected[job_id]
            assert (job.status, job.attempt) == (expected.status, expected.attempt)
            assert job.cancel_requested == expected.cancel_requested
            assert int(self.redis.hget(f"longcat:job:{job_id}", "gpu_ms") or 0) == expected.gpu_ms
            assert job.ended == (job.finished_at is not None) == (job.expires_at is not None)
        statuses = [job.status for job in stored.values()]
        assert self.store.client.counts() == {status: statuses.count(status) for status in get_args(Status)}

    @invariant()
    def removed_jobs_leave_no_keys(self) -> None:
        ids_in_keys = {key.rpartition(":")[2] for key in keys_of(self.redis)}
        assert not {job_id for job_id, job in self.expected.items() if job.removed} & ids_in_keys

    @invariant()
    def budgets_count_what_jobs_took_or_are_expected_to_take(self) -> None:
        budgets: dict[bytes, int] = {}
        for job in self.expected.values():
            key = f"longcat:gpu_budget:{job.created_ms // DAY_MS}:{job.queue.owner}".encode()
            budgets[key] = budgets.get(key, 0) + (job.gpu_ms if job.ends else job.expected_gpu_ms)
        stored = {key: int(self.redis.get(key) or 0) for key in self.redis.keys("longcat:gpu_budget:*")}
        assert stored == budgets

    @invariant()
    def jobs_end_once_and_attempts_are_limited(self) -> None:
        for job in self.expected.values():
            assert len(job.ends) <= 1
            assert 0 <= job.attempt <= MAX_ATTEMPTS

    @invariant()
    def no_job_is_lost(self) -> None:
        self.settle()
        order = self.expected_order()
        positions = [self.store.position(job_id) for job_id in order]
        assert positions == list(range(1, len(order) + 1))
        assert sum(self.store.maintenance.num_tickets_needed().values()) == self.num_tickets()
        self.move_late_jobs()
        held = [job_id for job_id, job in self.expected.items() if job.holder is not None]
        assert self.redis.zcard("longcat:leases") == len(held)
        assert all(self.redis.zscore("longcat:leases", job_id) for job_id in held)

    @invariant()
    def files_of_ended_jobs_are_removed_twice(self) -> None:
        due = {id_ for id_, job in self.expected.items() if job.removal_is_due(self.now_ms)}
        assert self.store.due_file_removals == due
        assert all(self.expected[job_id].status in ENDED for job_id in due)

    def present(self) -> list[Expected]:
        return [job for job in self.expected.values() if not job.removed]

    def queued(self) -> dict[str, Expected]:
        return {id_: job for id_, job in self.expected.items() if job.status == "queued" and not job.removed}

    def move_late_jobs(self) -> None:
        """Move jobs that did not start in time, as claims, sweeps, predictions and counts of tickets do."""
        for job in self.queued().values():
            if not job.has_started:
                job.move_if_late(self.now_ms)

    def may_start(self, job: Expected, leaving: Expected | None = None) -> bool:
        """Return whether the limit on running jobs of its owner allows a job to start."""
        running = [
            other
            for other in self.present()
            if other.status == "running" and other.queue.owner == job.queue.owner and other is not leaving
        ]
        return self.owner_running_jobs is None or len(running) < self.owner_running_jobs

    def num_tickets(self) -> int:
        """Return one ticket for each job of a class of which some job may start."""
        classes = [[job for job in self.queued().values() if job.distilled is flag] for flag in (True, False)]
        return sum(len(jobs) for jobs in classes if any(self.may_start(job) for job in jobs))

    def expected_order(self, group: str | None = None, *, limited: bool = False) -> list[str]:
        """Return the queued jobs that a group can run, in the order in which they start there.

        If `limited`, leave out those that a limit on running jobs keeps from starting now.
        """
        queued = {
            job_id: job
            for job_id, job in self.queued().items()
            if self.can_run(group, job) and (not limited or self.may_start(job))
        }
        starts = dict(self.virtual_start)
        ids = []
        while queued:
            heads: dict[Priority, str] = {}
            for job_id, job in queued.items():
                head = heads.setdefault(job.queue.priority, job_id)
                if _place(job, starts) < _place(queued[head], starts):
                    heads[job.queue.priority] = job_id
            next_id = min(heads.values(), key=lambda job_id: queued[job_id].effective_time())
            job = queued.pop(next_id)
            if not job.has_started:
                starts[job.queue] += job.charge
            ids.append(next_id)
        return ids

    def expected_next(self, group: str) -> str | None:
        """Return the job that a group starts next."""
        return next(iter(self.expected_order(group, limited=True)), None)

    def is_preempted(self, job_id: str, job: Expected) -> bool:
        """Request preemption like the store: at most one running job for each queued job of high priority."""
        has_gpus = job.status == "running" and job.group is not None and self.current[job.group] == job_id
        may_stop = job.queue.priority == "low" and has_gpus and not job.started_by_ageing
        if not job.preempt_requested and may_stop:
            for queued in self.queued().values():
                has_waited = self.now_ms - queued.created_ms >= PREEMPT_AFTER_S * 1000
                is_urgent = queued.queue.priority == "high" and has_waited and not queued.preempts
                if is_urgent and self.can_run(job.group, queued) and self.may_start(queued, leaving=job):
                    queued.preempts = job.preempt_requested = True
                    break
        return job.preempt_requested

    def can_run(self, group: str | None, job: Expected) -> bool:
        return group not in CAPABILITIES or not job.distilled

    def choose_job(self, number: int) -> str:
        return list(self.expected)[number % len(self.expected)]

    def choose_claim(self, number: int) -> Lease:
        """Return one of the last two claims for an even number, any claim for an odd one."""
        candidates = self.claims[-2:] if number % 2 == 0 else self.claims
        return candidates[number // 2 % len(candidates)]

    def held(self, claim: Lease) -> Expected | None:
        job = self.expected[claim.job.id]
        return job if not job.removed and job.holder == claim.fence else None

    def was_released(self, claim: Lease) -> bool:
        job = self.expected[claim.job.id]
        return not job.removed and job.holder is None and job.fence == claim.fence and not job.lease_ran_out

    def accepted(self, claim: Lease, act: Callable[[], object]) -> bool:
        """Return whether a call was accepted, which must be so if and only if the caller holds the job."""
        try:
            act()
        except LeaseLost:
            assert self.held(claim) is None
            return False
        assert self.held(claim) is not None
        return True

    def finish(self, claim: Lease, how: Status) -> Status | None:
        if how == "succeeded":
            return self.store.holder.succeed(claim, a_result(claim), {})
        if how == "failed":
            return self.store.holder.fail(claim, GenerationFailed("no"), {})
        self.store.holder.confirm_cancel(claim)
        return None


def _charge(units: float, owner: str) -> int:
    """Return how far the virtual start time of an owner grows for this many work units."""
    return max(1, floor(units / 1000 / WEIGHTS[owner] + 0.5))


def _place(job: Expected, starts: dict[OwnerQueue, int]) -> tuple[int, tuple[float, int]]:
    """Order the jobs of a priority: restarts by submission, others by virtual start time and place."""
    if job.has_started:
        return -1, (0, job.number)
    return starts[job.queue], job.place()


@pytest.mark.parametrize("max_examples", [15, pytest.param(40, marks=pytest.mark.integration)])
@pytest.mark.parametrize("owner_running_jobs", [None, 1])
def test_no_interleaving_of_calls_breaks_the_rules(
    redis: Redis, owner_running_jobs: int | None, max_examples: int
):
    run_state_machine_as_test(
        partial(JobStoreMachine, redis, owner_running_jobs),  # type: ignore[arg-type] # any factory of machines will do
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=40,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
