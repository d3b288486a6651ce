"""Any interleaving of clients, holders (also late ones) and sweepers, against a plain model of the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from jobs.errors import GenerationFailed, JobEnded, JobNotFound, LeaseLost
from jobs.order import Priority
from jobs.record import ENDED, Progress, Status
from jobs.store.holder import Lease
from tests.jobs.examples import LATE_UPLOAD_S, LEASE_S, Desk, a_result, keys_of

MAX_ATTEMPTS = 2
RETENTION_S = 1000
PRIORITIES: list[Priority] = ["high", "normal", "low"]
LEASE_MS = round(LEASE_S * 1000)


@dataclass(frozen=True)
class Line:
    """Where an owner's jobs of one priority wait."""

    priority: Priority
    owner: str


@dataclass
class Expected:
    """What a job should be like. `holder` is the fence of who holds it.

    Its files are to be looked through if it is `listed`, and for the last time at `settled_ms`.
    """

    line: Line
    number: int
    queue_deadline_ms: int | None
    status: Status = "queued"
    attempt: int = 0
    holder: int | None = None
    fence: int = 0
    lease_ms: int = 0
    spared: bool = False
    begun: bool = False
    taken_away: bool = False
    cancel_requested: bool = False
    delete_requested: bool = False
    gone: bool = False
    expires_ms: int = 0
    listed: bool = False
    settled_ms: int | None = None
    saved: dict[str, Any] | None = None
    ends: list[Status] = field(default_factory=list)

    def end(self, status: Status, now_ms: int) -> str:
        self.status = "cancelled" if self.cancel_requested else status
        self.ends.append(self.status)
        self.holder = None
        self.expires_ms = now_ms + RETENTION_S * 1000
        self.listed = self.begun
        if self.delete_requested:
            self.go()
        return self.status

    def go(self) -> None:
        self.gone = self.listed = True

    def is_to_be_looked_through(self, now_ms: int) -> bool:
        return self.listed or (self.settled_ms is not None and self.settled_ms <= now_ms)

    def put_back(self, now_ms: int, *, crashed: bool) -> str:
        if self.cancel_requested:
            return self.end("cancelled", now_ms)
        if crashed and self.attempt == MAX_ATTEMPTS:
            return self.end("failed", now_ms)
        self.status, self.holder = "queued", None
        self.attempt -= not crashed
        return "queued"


class LedgerMachine(RuleBasedStateMachine):
    """Several actors on one store; `claims` keeps every claim ever made, so that old holders speak too."""

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        redis.flushall()
        self.redis = redis
        self.desk = Desk.open(redis, retention_s=RETENTION_S, max_attempts=MAX_ATTEMPTS)
        self.desk.job_store.maintenance.sweep()
        self.expected: dict[str, Expected] = {}
        self.turns: dict[Line, int] = {}
        self.turn_now: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self.swept_ms = self.now_ms

    @property
    def now_ms(self) -> int:
        return self.desk.clock.now_ms

    @rule(
        target=jobs,
        priority=st.sampled_from(PRIORITIES),
        owner=st.sampled_from("xyz"),
        waits=st.sampled_from([None, 60]),
    )
    def submit(self, priority: Priority, owner: str, waits: int | None) -> str:
        job = self.desk.submit(priority=priority, owner=owner, max_queue_s=waits)
        deadline_ms = self.now_ms + waits * 1000 if waits else None
        line = Line(priority, owner)
        if not any(other.line == line and not other.begun for other in self.waiting().values()):
            self.turns[line] = max(self.turns.get(line, 0), self.turn_now[priority])
        self.expected[job.id] = Expected(line, len(self.expected), deadline_ms)
        return job.id

    @rule(job_id=jobs)
    def submit_again(self, job_id: str) -> None:
        if not self.expected[job_id].gone:
            assert self.desk.submit(id=job_id).status == self.expected[job_id].status

    @rule(target=claims, group=st.sampled_from("ab"))
    def claim(self, group: str) -> Any:
        queued = self.in_line()
        claim = self.desk.job_store.holder.claim(group, LEASE_S)
        if not queued:
            assert claim is None
            return multiple()
        assert claim is not None
        job = self.expected[queued[0]]
        assert claim.job.id == queued[0]
        if not job.begun:
            turn = self.turns[job.line]
            self.turns[job.line] = turn + 1
            self.turn_now[job.line.priority] = max(turn, self.turn_now[job.line.priority])
        job.begun = True
        assert claim.fence == claim.attempt == job.fence + 1
        assert claim.checkpoint == job.saved
        job.status, job.holder, job.fence, job.taken_away = "running", claim.fence, claim.fence, False
        job.attempt += 1
        job.lease_ms, job.spared, job.queue_deadline_ms = self.now_ms + LEASE_MS, False, None
        return claim

    @rule(claim=claims, step=st.integers(0, 50))
    def beat(self, claim: Lease, step: int) -> None:
        verdict = self.desk.job_store.holder.renew_lease(claim, Progress(phase="denoise", step=step))
        job = self.held(claim)
        if job is None:
            assert verdict == "lease_lost"
        else:
            job.lease_ms, job.spared = self.now_ms + LEASE_MS, False
            assert verdict == ("cancel" if job.cancel_requested else None)

    @rule(claim=claims, step=st.integers(0, 50))
    def remember(self, claim: Lease, step: int) -> None:
        saved = {"step": step}
        if self.speaks(claim, lambda: self.desk.job_store.holder.save_checkpoint(claim, saved)):
            self.expected[claim.job.id].saved = saved

    @rule(claim=claims)
    def begin_upload(self, claim: Lease) -> None:
        if self.speaks(claim, lambda: self.desk.job_store.holder.begin_upload(claim)):
            self.expected[claim.job.id].status = "uploading"

    @rule(claim=claims, how=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def end(self, claim: Lease, how: Status) -> None:
        job = self.expected[claim.job.id]
        if job.status in ENDED and self.let_go(claim):
            assert self.finish(claim, how) in {job.status, None}
        elif self.speaks(claim, lambda: self.finish(claim, how)):
            job.end(how, self.now_ms)

    @rule(claim=claims, crashed=st.booleans())
    def requeue(self, claim: Lease, crashed: bool) -> None:
        job = self.expected[claim.job.id]
        if self.let_go(claim):
            assert self.desk.job_store.holder.requeue(claim, crashed=crashed) == job.status
        elif self.speaks(claim, lambda: self.desk.job_store.holder.requeue(claim, crashed=crashed)):
            job.put_back(self.now_ms, crashed=crashed)

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.expected[job_id]
        try:
            self.desk.job_store.client.cancel(job_id)
        except JobNotFound:
            assert job.gone
        except JobEnded:
            assert job.status in {"succeeded", "failed"}
        else:
            if job.status == "queued":
                job.end("cancelled", self.now_ms)
            elif job.holder is not None:
                job.cancel_requested = True

    @rule(job_id=jobs)
    def delete(self, job_id: str) -> None:
        job = self.expected[job_id]
        try:
            gone = self.desk.job_store.client.delete(job_id)
        except JobNotFound:
            assert job.gone
            return
        if job.holder is not None:
            assert not gone
            job.cancel_requested = job.delete_requested = True
            return
        assert gone
        if job.status == "queued":
            job.end("cancelled", self.now_ms)
        job.go()

    @rule(claim=claims)
    def store_late(self, claim: Lease) -> None:
        self.desk.job_store.maintenance.report_late_file(claim.job.id)
        job = self.expected[claim.job.id]
        if job.status in ENDED:
            job.listed = True

    @rule(seconds=st.sampled_from([1, 9, 11, LEASE_S, 61, LATE_UPLOAD_S, RETENTION_S]))
    def time_passes(self, seconds: float) -> None:
        self.desk.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        away = self.now_ms - self.swept_ms > LEASE_MS / 3
        self.swept_ms = self.now_ms
        for job in self.present():
            if job.holder is not None and away and not job.spared:
                job.lease_ms, job.spared = max(job.lease_ms, self.now_ms + LEASE_MS), True
            if job.holder is not None and job.lease_ms <= self.now_ms:
                job.taken_away = True
                job.put_back(self.now_ms, crashed=True)
            elif job.status == "queued" and (job.queue_deadline_ms or self.now_ms + 1) <= self.now_ms:
                job.end("failed", self.now_ms)
            elif job.status in ENDED and job.expires_ms <= self.now_ms:
                job.go()
        self.desk.job_store.maintenance.sweep()

    @rule()
    def remove_files(self) -> None:
        for job_id, since in self.desk.job_store.maintenance.due_file_removals().items():
            job = self.expected[job_id]
            if job.settled_ms is not None and job.settled_ms <= self.now_ms:
                job.settled_ms = None
            else:
                job.listed, job.settled_ms = False, self.now_ms + round(LATE_UPLOAD_S * 1000)
            self.desk.job_store.maintenance.confirm_file_removal(job_id, since)

    @invariant()
    def every_job_is_as_expected(self) -> None:
        for job_id, expected in self.expected.items():
            if expected.gone:
                assert not keys_of(self.redis, f"longcat:*:{job_id}")
                continue
            job = self.desk.job_store.client.get(job_id)
            assert (job.status, job.attempt) == (expected.status, expected.attempt)
            assert job.cancel_requested == expected.cancel_requested
            assert job.ended == (job.finished_at is not None) == (job.expires_at is not None)

    @invariant()
    def a_job_ends_once_and_tries_no_oftener_than_it_may(self) -> None:
        for job in self.expected.values():
            assert len(job.ends) <= 1
            assert 0 <= job.attempt <= MAX_ATTEMPTS

    @invariant()
    def no_job_is_lost(self) -> None:
        in_line = self.in_line()
        positions = [self.desk.position(job_id) for job_id in in_line]
        assert positions == list(range(1, len(in_line) + 1))
        assert self.desk.job_store.maintenance.num_tickets_needed() == len(in_line)
        held = [job_id for job_id, job in self.expected.items() if job.holder is not None]
        assert self.redis.zcard("longcat:leases") == len(held)
        assert all(self.redis.zscore("longcat:leases", job_id) for job_id in held)

    @invariant()
    def files_of_all_that_ended_are_looked_through_and_once_more_when_none_can_come(self) -> None:
        due = {id_ for id_, job in self.expected.items() if job.is_to_be_looked_through(self.now_ms)}
        assert self.desk.job_store.maintenance.due_file_removals().keys() == due
        assert all(self.expected[job_id].status in ENDED for job_id in due)

    @invariant()
    def lists_agree_with_records(self) -> None:
        present = {job_id for job_id, job in self.expected.items() if not job.gone}
        assert {job.id for job in self.desk.job_store.client.page(limit=1000)} == present
        statuses = [self.expected[job_id].status for job_id in present]
        assert self.desk.job_store.client.counts() == {
            status: statuses.count(status)
            for status in ("queued", "running", "uploading", "succeeded", "failed", "cancelled")
        }

    def present(self) -> list[Expected]:
        return [job for job in self.expected.values() if not job.gone]

    def waiting(self) -> dict[str, Expected]:
        return {id_: job for id_, job in self.expected.items() if job.status == "queued" and not job.gone}

    def in_line(self) -> list[str]:
        """The jobs that wait, in the order in which they are to be begun."""
        waiting, turns = self.waiting(), dict(self.turns)
        ids = []
        while waiting:
            next_id = min(waiting, key=lambda job_id: _place(waiting[job_id], turns))
            job = waiting.pop(next_id)
            if not job.begun:
                turns[job.line] += 1
            ids.append(next_id)
        return ids

    def held(self, claim: Lease) -> Expected | None:
        job = self.expected[claim.job.id]
        return job if not job.gone and job.holder == claim.fence else None

    def let_go(self, claim: Lease) -> bool:
        job = self.expected[claim.job.id]
        return not job.gone and job.holder is None and job.fence == claim.fence and not job.taken_away

    def speaks(self, claim: Lease, act: Callable[[], object]) -> bool:
        """Whether a holder was heard, which is if and only if the job is his."""
        try:
            act()
        except LeaseLost:
            assert self.held(claim) is None
            return False
        assert self.held(claim) is not None
        return True

    def finish(self, claim: Lease, how: Status) -> Status | None:
        if how == "succeeded":
            return self.desk.job_store.holder.succeed(claim, a_result(claim), {})
        if how == "failed":
            return self.desk.job_store.holder.fail(claim, GenerationFailed("no"), {})
        self.desk.job_store.holder.confirm_cancel(claim)
        return None


def _place(job: Expected, turns: dict[Line, int]) -> tuple[int, int, int]:
    """By priority; then who was begun before; then by turn; then by submission."""
    return PRIORITIES.index(job.line.priority), -1 if job.begun else turns[job.line], job.number


def test_no_interleaving_breaks_the_rules(redis: Redis):
    run_state_machine_as_test(
        partial(LedgerMachine, redis),  # type: ignore[arg-type] # any factory of machines will do
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
