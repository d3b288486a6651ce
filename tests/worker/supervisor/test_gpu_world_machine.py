"""Check the world's rules for any order of events.

Hypothesis plays the supervisors, which start and stop jobs, and the ranks, which run steps, decode, stop when
they are told to, fail and die. The ranks check what they are told: a rank never has two jobs, and a job that
had too little memory gets more ranks. Whatever happens, each job ends once for its supervisor, and none waits
while all ranks are idle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs.record import JobError
from jobs.store.holder import StopReason
from tests.worker.supervisor.fake_world import FakeWorld
from tests.worker.supervisor.fakes import VIDEO
from worker.messages import (
    SAVE_BEFORE_STOP,
    GpusReleased,
    JobFailed,
    JobStopped,
    LastDecode,
    ProgressReport,
    RunJob,
    StopJob,
    VideoDone,
)

NUM_RANKS = 4
REASONS: list[StopReason] = ["cancel", "deadline", "preempt", "drain", "lease_lost"]
ERRORS = [JobError(code=code, message="", retryable=False) for code in ("out_of_memory", "generation_failed")]


@dataclass
class Job:
    """A job of a slot, as its supervisor and the ranks see it.

    Attributes:
        block: the ranks that run it, none while it waits.
        stop: why its ranks are to stop.
        wanted: why the supervisor wants it to stop.
        step: the number of steps that are done.
        saved_step: the number of those that its latest checkpoint has.
        least_width: the number of ranks that it gets at least.
    """

    slot: int
    block: tuple[int, ...] = ()
    leader: int | None = None
    stop: StopReason | None = None
    wanted: StopReason | None = None
    step: int = 0
    saved_step: int = 0
    least_width: int = 1
    is_decoding: bool = False
    is_released: bool = False
    fraction: float = 0.0


def when(condition: Callable[[WorldMachine], object]) -> Callable[[Any], Any]:
    return precondition(lambda machine: bool(condition(machine)))


class WorldMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeWorld(NUM_RANKS, NUM_RANKS)
        self.jobs: dict[str, Job] = {}  # that have not ended for their supervisor
        self.num_jobs = 0
        self.num_seen = 0  # messages that the ranks have read

    @initialize(widths=st.sampled_from([(1, 2, 4), (1, 2), (1,)]))
    def bring_up(self, widths: tuple[int, ...]) -> None:
        self.fake.bring_up(widths)
        self.widths = widths

    # What follows from an event

    def exchange(self) -> None:
        """Have the ranks read what they are told, and the supervisors what they are sent."""
        received = self.fake.ranks.received
        new, self.num_seen = received[self.num_seen :], len(received)
        for rank, message in new:
            job = self.jobs[message.job_id]  # type: ignore[union-attr]
            if isinstance(message, RunJob):
                assert all(rank not in other.block for other in self.jobs.values()), "the rank has a job"
                assert message.width in self.widths
                job.leader = rank if not job.block else job.leader
                job.block, job.stop = (*job.block, rank), None
                assert (message.resume.step if message.resume else 0) == job.step
            elif isinstance(message, StopJob):
                assert rank == job.leader
                assert job.stop is None or message.reason != "resize"
                job.stop = message.reason
        for job in self.jobs.values():
            assert not job.block or len(job.block) in self.widths
            assert not job.block or len(job.block) >= job.least_width
            assert not job.block or job.block[0] % len(job.block) == 0
        self.read_inboxes()

    def read_inboxes(self) -> None:
        for slot in self.fake.slots:
            for message in self.fake.received(slot):
                if isinstance(message, ProgressReport):
                    job = self.jobs[message.job_id]
                    assert message.progress.fraction >= job.fraction
                    job.fraction = message.progress.fraction
                elif isinstance(message, JobStopped | JobFailed | VideoDone):
                    ended = self.jobs.pop(message.job_id)
                    assert self.fake.slots[ended.slot] is slot
                    if isinstance(message, JobStopped):
                        assert message.reason == ended.wanted

    def draw(self, data: st.DataObject, condition: Callable[[Job], object]) -> tuple[str, Job]:
        return data.draw(st.sampled_from([item for item in self.jobs.items() if condition(item[1])]))

    def free_slots(self) -> list[int]:
        taken = {job.slot for job in self.jobs.values() if not job.is_released}
        return [slot for slot in range(NUM_RANKS) if slot not in taken]

    def any_job(self, condition: Callable[[Job], object]) -> bool:
        return any(condition(job) for job in self.jobs.values())

    # The supervisors

    @when(lambda machine: machine.free_slots())
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        slot, job_id = data.draw(st.sampled_from(self.free_slots())), f"job-{self.num_jobs}"
        self.num_jobs += 1
        self.jobs[job_id] = Job(slot)
        self.fake.start(slot, job_id)
        self.exchange()

    @when(lambda machine: machine.any_job(may_be_stopped))
    @rule(data=st.data(), reason=st.sampled_from(REASONS))
    def stop(self, data: st.DataObject, reason: StopReason) -> None:
        job_id, job = self.draw(data, may_be_stopped)
        job.wanted = reason
        self.fake.slots[job.slot].stop_job(job_id, reason)
        self.exchange()

    # The ranks

    @when(lambda machine: machine.any_job(takes_steps))
    @rule(data=st.data(), fraction=st.floats(0, 1), eta_s=st.floats(0, 1e4))
    def step(self, data: st.DataObject, fraction: float, eta_s: float) -> None:
        job_id, job = self.draw(data, takes_steps)
        self.do_step(job_id, job, fraction, eta_s)

    def do_step(self, job_id: str, job: Job, fraction: float = 0.5, eta_s: float = 1.0) -> None:
        job.step += 1
        self.fake.report(job_id, fraction, eta_s)
        if job.stop:
            block, job.block, stop, job.stop = job.block, (), job.stop, None
            assert block
            if stop in SAVE_BEFORE_STOP:
                self.fake.save(job_id, job.step)
                job.saved_step = job.step
            self.fake.send(JobStopped(job_id=job_id, reason=stop))
        self.exchange()

    @when(lambda machine: machine.any_job(may_decode))
    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        job_id, job = self.draw(data, may_decode)
        job.is_decoding = True
        self.fake.send(LastDecode(job_id=job_id))
        self.exchange()

    @when(lambda machine: machine.any_job(may_release))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        job_id, job = self.draw(data, may_release)
        job.block, job.is_released = (), True
        self.fake.send(GpusReleased(job_id=job_id))
        self.exchange()

    @when(lambda machine: machine.any_job(lambda job: job.is_released))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        job_id, _ = self.draw(data, lambda job: job.is_released)
        self.fake.send(VideoDone(job_id=job_id, video=VIDEO, timings_s={}))
        self.exchange()

    @when(lambda machine: machine.any_job(lambda job: job.block))
    @rule(data=st.data(), error=st.sampled_from(ERRORS))
    def fail(self, data: st.DataObject, error: JobError) -> None:
        job_id, job = self.draw(data, lambda job: job.block)
        width, job.block = len(job.block), ()
        if error.code == "out_of_memory" and job.wanted is None and width < self.widths[-1]:
            job.least_width, job.step, job.is_decoding = 2 * width, job.saved_step, False
            job.leader, job.stop = None, None
        self.fake.send(JobFailed(job_id=job_id, error=error, timings_s={}))
        self.exchange()
        assert (job_id in self.jobs) == (job.least_width > width)

    @rule(rank=st.integers(0, NUM_RANKS - 1))
    def die(self, rank: int) -> None:
        to_blame = {job_id for job_id, job in self.jobs.items() if rank in job.block or rank == job.leader}
        self.fake.send(None, rank)
        for slot in self.fake.slots:
            assert self.fake.received(slot) == [None]
            slot.stop()
        blamed = {job_id for job_id, job in self.jobs.items() if self.is_blamed(job_id, job)}
        assert blamed == to_blame
        self.jobs.clear()  # their supervisors requeue them
        self.fake.now += 100
        self.fake.bring_up(self.widths)
        self.num_seen = 0

    def is_blamed(self, job_id: str, job: Job) -> bool:
        return self.fake.slots[job.slot].is_to_blame(job_id)

    @invariant()
    def no_job_waits_while_all_ranks_are_idle(self) -> None:
        if not self.any_job(lambda job: job.block):
            assert all(job.is_released for job in self.jobs.values())

    def teardown(self) -> None:
        """Let all jobs go on until they end."""
        for _ in range(100):
            for job_id, job in list(self.jobs.items()):
                if job_id not in self.jobs:
                    continue
                if job.is_released:
                    self.fake.send(VideoDone(job_id=job_id, video=VIDEO, timings_s={}))
                elif may_decode(job):
                    job.is_decoding = True
                    self.fake.send(LastDecode(job_id=job_id))
                elif may_release(job):
                    job.block, job.is_released = (), True
                    self.fake.send(GpusReleased(job_id=job_id))
                elif job.block:
                    self.do_step(job_id, job)
                self.exchange()
        assert not self.jobs


def may_be_stopped(job: Job) -> bool:
    return job.wanted is None and not job.is_released


def takes_steps(job: Job) -> bool:
    return bool(job.block) and (not job.is_decoding or job.stop not in {None, "resize"})


def may_decode(job: Job) -> bool:
    """Return whether the last step may be done: a resize that comes then is not heeded."""
    return bool(job.block) and not job.is_decoding and job.stop in {None, "resize"}


def may_release(job: Job) -> bool:
    return bool(job.block) and job.is_decoding and job.stop in {None, "resize"}


def test_every_job_ends_once_and_no_rank_has_two():
    run_state_machine_as_test(WorldMachine, settings=settings(max_examples=60, stateful_step_count=40))
