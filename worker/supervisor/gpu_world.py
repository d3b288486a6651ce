"""Run the jobs of several supervisors in one world: ranks that work alone or together, and change that.

The ranks of a worker with `CONTEXT_PARALLEL=auto` are started together. A job runs on a *block* of them,
whose number of ranks is the job's *width*. Whenever a job comes or leaves, `worker.supervisor.allocation`
chooses widths and blocks. A job that gets another block saves a checkpoint after its current step, stops for
`resize`, and resumes in the new one. Nothing is loaded again. A job that runs out of memory resumes from its
latest checkpoint in a wider block, and fails in the widest.

Each supervisor has a `Slot`, which is its `Group`: it runs one job at a time and does not notice the changes.
There are more slots than ranks. The *spare* ones, those beyond the number of ranks, claim jobs only while
there is a job for each rank. They have no registration, and claim in the name of other slots.

Slots are used by the threads of their supervisors, and messages come from threads of the `GroupProcess`, so a
lock guards all state. If a rank fails, all are killed, and every supervisor requeues its jobs; only those
whose block had the rank lose an attempt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Protocol

from jobs.capability import Capability
from jobs.errors import OutOfMemory
from jobs.record import JobError, Progress
from jobs.registration import GroupState
from jobs.store.holder import StopReason
from jobs.work import work_units
from worker.messages import (
    JOB_ERROR,
    CheckpointSaved,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobMessage,
    JobPaused,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    RankConnected,
    Ready,
    RunJob,
    StopJob,
    VideoDone,
)
from worker.supervisor.allocation import JobInHand, choose_widths, place, remaining_by_width
from worker.supervisor.events import GroupMessage
from worker.supervisor.gpu_group import GpuGroup, GroupLimits
from worker.supervisor.group_process import GroupProcess, OnMessage
from worker.supervisor.states import IllegalTransition, WorldJobState, change
from worker.supervisor.watchdog import Watchdog

logger = logging.getLogger(__name__)

NO_RANKS = range(0)
GUESSED_UNIT_S = 9e-8
"""Seconds of one GPU for a work unit, until a job has shown it: LongCat-Video at 0.6 PFLOP/s."""
REMEMBERED_CHANGES = 5
LONGEST_WAIT_S = 300.0  # a job that has no ranks for this long may be given back to the queue
GUESSED_CHANGE_S = 2.0
"""What a change of width costs a job, until one was measured."""
StartRanks = Callable[[OnMessage], GroupProcess]
"""Start the processes of ranks, whose messages go to the given function."""


class SlotInbox(Protocol):
    """The inbox of a supervisor, as the world uses it."""

    def put(self, item: GroupMessage, /) -> None:
        """Add an event."""


@dataclass(eq=False)
class WorldJob:
    """A job that a slot has given to the world.

    Attributes:
        run: starts it from its latest checkpoint.
        block: its ranks; none while it waits, and once the GPUs are released.
        leader: the rank that reports it, and writes its video.
        stop_request: why it is to stop, except for a resize.
        progress: its latest progress.
        remaining_s: how long it would still run on one rank by its own latest report, if it has made one.
        is_in_time: whether that report predicts its end before its deadline.
        waiting_since: when it last began to wait.
        resizing_since: when it made its latest progress before it stops for a resize, until it is at its next
            step. The time that it waits for ranks is left out.
        is_saved: it has saved a checkpoint since it got its ranks.
        least_width: the number of ranks that it needs at least, as far as it has shown: twice as many as had
            too little memory.
    """

    slot: Slot
    run: RunJob
    state: WorldJobState = WorldJobState.WAITING
    block: range = NO_RANKS
    leader: int | None = None
    stop_request: StopReason | None = None
    progress: Progress = field(default_factory=lambda: Progress(phase="load"))
    remaining_s: float | None = None
    is_in_time: bool = True
    waiting_since: float = 0.0
    resizing_since: float | None = None
    is_saved: bool = True
    least_width: int = 1

    @property
    def job_id(self) -> str:
        """Return the id of the job."""
        return self.run.job_id

    @property
    def may_change(self) -> bool:
        """Return whether its block may change.

        It may not in its last decode, nor if it is about to stop. It may not either if it could not save its
        state for the last change, until it has saved one: it would do the same again.
        """
        is_unsaved = self.state is WorldJobState.RUNNING and not self.is_saved
        return self.stop_request is None and self.state is not WorldJobState.DECODING and not is_unsaved

    @property
    def is_guided(self) -> bool:
        """Return whether it has two predictions in each step, which two halves of its ranks can share."""
        return self.run.order.plan.guidance_scale > 1

    def on_one_rank(self, seconds: float) -> float:
        """Return how long one rank takes for what its ranks do in so many seconds."""
        return remaining_by_width({len(self.block) or 1: seconds}, [1], guided=self.is_guided)[1]

    def enter(self, state: WorldJobState) -> None:
        """Change to this state. Raises IllegalTransition."""
        self.state = change(self.state, state)


class GpuWorld:
    """The ranks of one worker, started together, and started again whenever one of them fails.

    Args:
        start: starts the processes.
        limits: how long the world may take.
        num_ranks: the number of ranks, a power of two.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        start: StartRanks,
        limits: GroupLimits,
        num_ranks: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.group = GpuGroup(lambda: start(self._on_message), limits, clock)
        self.lock = threading.RLock()
        self._limits = limits
        self._num_ranks = num_ranks
        self._clock = clock
        self._killing = threading.Lock()
        self._slots: list[Slot] = []
        self._jobs: list[WorldJob] = []
        self._widths: tuple[int, ...] = ()
        self._blamed_start: GroupProcess | None = None
        self._unit_s = GUESSED_UNIT_S
        self._changes_s: deque[float] = deque(maxlen=REMEMBERED_CHANGES)
        self.is_stopping = False

    def add_slot(self, inbox: SlotInbox) -> Slot:
        """Return a slot for a supervisor, which gets the messages about its jobs in its inbox."""
        watchdog = Watchdog(self._limits.stall_s, self._limits.step_stall_s, self._clock)
        slot = Slot(self, inbox, watchdog, is_spare=len(self._slots) >= self._num_ranks)
        self._slots.append(slot)
        return slot

    # For the slots. All but `stop` are called with the lock held.

    def start_job(self, slot: Slot, run: RunJob) -> None:
        """Run a job as soon as there are ranks for it."""
        job = WorldJob(slot, run, waiting_since=self._clock())
        self._jobs.append(job)
        self._arrange()
        if job.state is WorldJobState.WAITING:
            self._tell(job, JobPaused(job_id=job.job_id))

    def stop_job(self, slot: Slot, job_id: str, reason: StopReason) -> None:
        """Stop a job of a slot. One that has no ranks has stopped at once."""
        for job in self._jobs:
            if job.slot is not slot or job.job_id != job_id or job.state is WorldJobState.RELEASED:
                continue
            job.stop_request = reason
            if job.state is WorldJobState.WAITING:
                self._end(job, JobStopped(job_id=job_id, reason=reason))
            else:
                self._send(StopJob(job_id=job_id, reason=reason), [job.block.start])
            return

    def give_back_waiting_jobs(self) -> None:
        """Give jobs back to the queue that have waited for long, so that another worker can run them.

        One that ran out of memory stays: if it came back, it would begin with too few ranks again.
        """
        for job in list(self._jobs):
            waits = job.state is WorldJobState.WAITING and job.least_width == 1
            if waits and self._clock() - job.waiting_since > LONGEST_WAIT_S:
                self._end(job, JobStopped(job_id=job.job_id, reason="preempt"))

    def is_waiting(self, slot: Slot) -> bool:
        """Return whether a job of the slot waits for ranks."""
        return any(job.slot is slot and job.state is WorldJobState.WAITING for job in self._jobs)

    @property
    def has_job_for_each_rank(self) -> bool:
        """Return whether at least as many jobs have ranks or wait for them as there are ranks."""
        return sum(job.state is not WorldJobState.RELEASED for job in self._jobs) >= self._num_ranks

    def stands_for_spare(self, slot: Slot) -> bool:
        """Return whether a registered slot without a job counts as busy in place of a spare slot with one.

        So as many of them are busy as there are jobs, up to the number of ranks.
        """
        having_jobs = {job.slot for job in self._jobs if job.state is not WorldJobState.RELEASED}
        idle = [each for each in self._slots if not each.is_spare and each not in having_jobs]
        return slot in idle[: sum(each.is_spare for each in having_jobs)]

    def blame_slot(self, slot: Slot) -> None:
        """Blame the jobs of a slot for the failure of the world, unless others are."""
        self._blame(job for job in self._jobs if job.slot is slot)

    def blame_ranks(self, ranks: Iterable[int]) -> None:
        """Blame the jobs that these ranks ran, or whose video they wrote, unless others are."""
        failed = set(ranks)
        self._blame(job for job in self._jobs if failed.intersection(job.block) or job.leader in failed)

    def stop(self, process: GroupProcess | None) -> None:
        """Kill the processes of a start, and return when they are gone. Called without the lock."""
        with self._killing:
            with self.lock:
                if process is None or process is not self.group.process:
                    return
                self.is_stopping = True
                self._jobs.clear()
            self.group.stop()  # joins threads that may wait for the lock
            with self.lock:
                self.is_stopping = False

    @property
    def is_idle(self) -> bool:
        """Return whether all slots are closed."""
        return all(slot.is_closed for slot in self._slots)

    def _blame(self, jobs: Iterable[WorldJob]) -> None:
        """Remember which jobs are to blame for the end of this start. Only the first call counts.

        If ranks wrote errors, their jobs are to blame, whichever rank the supervisor heard of first. A rank
        may also have run one job while it wrote the video of another.
        """
        if self.group.process is not self._blamed_start:
            self._blamed_start = self.group.process
            failed = [job for job in self._jobs if (job.run.folder / JOB_ERROR).exists()]
            for job in failed or jobs:
                job.slot.blamed.add(job.job_id)

    # Messages

    def _on_message(self, process: GroupProcess, message: Message | None, rank: int) -> None:
        with self.lock:
            if process is not self.group.process or self.is_stopping:
                return
            match message:
                case None | GroupFailed():
                    self.blame_ranks([rank])
                    self._tell_all(message)
                case Ready():
                    self._widths = message.widths
                    self._tell_all(message)
                case RunJob() | StopJob() | RankConnected():
                    raise AssertionError(f"no rank sends {message.type} to a supervisor")
                case _:
                    self._on_job_message(message)

    def _on_job_message(self, message: JobMessage) -> None:
        for job in self._jobs:  # one at most has started and not ended
            if job.job_id == message.job_id and job.leader is not None:
                try:
                    self._apply(job, message)
                except IllegalTransition as error:
                    self.blame_ranks([job.leader])
                    self._tell_all(GroupFailed(message=f"a rank sent a message out of order: {error}"))
                return

    def _apply(self, job: WorldJob, message: JobMessage) -> None:
        match message:
            case JobStopped(reason="resize") if job.stop_request is None:
                self._pause(job)
            case JobFailed() if self._may_fit_wider(job, message.error):
                logger.warning("job %s ran out of memory on ranks %s: it gets more", job.job_id, job.block)
                job.least_width = 2 * len(job.block)
                self._pause(job)
            case JobStopped(reason="resize"):  # another reason came too late for the ranks
                self._end(job, message.model_copy(update={"reason": job.stop_request}))
            case JobStopped() | JobFailed() | VideoDone():
                self._end(job, message)
            case ProgressReport():
                self._tell(job, self._on_progress(job, message))
                self._arrange_if_late(job)
            case CheckpointSaved():
                job.is_saved = True
                job.run = job.run.model_copy(update={"resume": message.checkpoint})
                self._tell(job, message)
            case LastDecode():
                job.enter(WorldJobState.DECODING)
                self._tell(job, message)
            case GpusReleased():
                job.enter(WorldJobState.RELEASED)
                job.block = NO_RANKS
                self._tell(job, message)
                self._arrange()
            case _:
                self._tell(job, message)

    def _on_progress(self, job: WorldJob, message: ProgressReport) -> ProgressReport:
        """Return the report with a fraction that does not decrease when a job resumes in another block."""
        progress = message.progress
        progress = progress.model_copy(update={"fraction": max(progress.fraction, job.progress.fraction)})
        job.progress = progress
        job.run = job.run.model_copy(update={"timings_s": message.timings_s})
        self._measure_change(job)
        self._measure_speed(job)
        return message.model_copy(update={"progress": progress})

    def _measure_change(self, job: WorldJob) -> None:
        """Measure how long a resize kept a job from its steps, given its latest progress."""
        if job.state is WorldJobState.RESIZING:
            job.resizing_since = self._clock()  # the step until then is not lost
        is_in_step = job.state is WorldJobState.RUNNING and job.progress.phase in {"denoise", "refine"}
        if is_in_step and job.resizing_since is not None:
            self._changes_s.append(self._clock() - job.resizing_since)
            job.resizing_since = None
            logger.info("job %s goes on after %.2f s", job.job_id, self._changes_s[-1])

    def _measure_speed(self, job: WorldJob) -> None:
        """Measure how long one rank takes for the rest of a job, and for a work unit, if it has an ETA."""
        eta_s, fraction = job.progress.eta_s, job.progress.fraction
        if eta_s is None:
            return
        job.remaining_s = job.on_one_rank(eta_s)
        if eta_s and fraction < 1:
            self._unit_s = job.remaining_s / (1 - fraction) / work_units(job.run.order.plan)

    def _arrange_if_late(self, job: WorldJob) -> None:
        """Choose widths again if a job has just reported that it will miss its deadline with its own."""
        if job.state is not WorldJobState.RUNNING or job.remaining_s is None:
            return
        was_in_time = job.is_in_time
        job.is_in_time = self._in_hand(job).is_in_time(len(job.block), self._change_s)
        if was_in_time and not job.is_in_time:
            self._arrange()

    def _may_fit_wider(self, job: WorldJob, error: JobError) -> bool:
        """Return whether a job that failed has run out of memory where a wider block may have enough."""
        may_run = job.stop_request is None and job.state is not WorldJobState.RELEASED
        return may_run and error.code == OutOfMemory.code and len(job.block) < self._widths[-1]

    def _pause(self, job: WorldJob) -> None:
        """Take its ranks from a job that has stopped, and give them to it or to others."""
        job.enter(WorldJobState.WAITING)
        job.block, job.leader, job.waiting_since = NO_RANKS, None, self._clock()
        self._tell(job, JobPaused(job_id=job.job_id))
        self._arrange()

    def _end(self, job: WorldJob, message: JobMessage) -> None:
        self._jobs.remove(job)
        self._tell(job, message)
        self._arrange()

    def _tell(self, job: WorldJob, message: JobMessage) -> None:
        assert self.group.process is not None
        job.slot.inbox.put(GroupMessage(self.group.process, message))

    def _tell_all(self, message: Message | None) -> None:
        assert self.group.process is not None
        for slot in self._slots:
            slot.inbox.put(GroupMessage(self.group.process, message))

    def _send(self, message: Message, ranks: Iterable[int]) -> None:
        assert self.group.process is not None
        for rank in ranks:
            self.group.process.send(message, rank)

    # Widths and blocks

    @property
    def _change_s(self) -> float:
        """Return what a change of width costs a job: the median of the latest ones."""
        return median(self._changes_s) if self._changes_s else GUESSED_CHANGE_S

    def _arrange(self) -> None:
        """Choose the block of each job, stop jobs that have another, and start those whose ranks are free."""
        jobs = {job.job_id: job for job in self._jobs if self._needs_ranks(job)}
        in_hand = [self._in_hand(job) for job in jobs.values()]
        widths = choose_widths(in_hand, self._num_ranks, self._change_s)
        present = {job_id: job.block for job_id, job in jobs.items() if job.block}
        fixed = [job_id for job_id, job in jobs.items() if not job.may_change]
        blocks = place(widths, present, self._num_ranks, fixed)
        # If the blocks need ranks of jobs that cannot be stopped now, no job moves yet.
        fixed_jobs_stay = all(blocks[job_id] == jobs[job_id].block for job_id in fixed)
        for job_id, job in jobs.items():
            block = blocks.get(job_id, NO_RANKS)
            if fixed_jobs_stay and job.state is WorldJobState.RUNNING and block != job.block:
                logger.info("job %s moves from ranks %s to %s", job_id, job.block, block or "none")
                job.enter(WorldJobState.RESIZING)
                job.resizing_since, job.is_saved = self._clock(), False
                self._send(StopJob(job_id=job_id, reason="resize"), [job.block.start])
        for job_id, job in jobs.items():
            if job.state is WorldJobState.WAITING:
                self._start_if_free(job, blocks.get(job_id, NO_RANKS))

    def _needs_ranks(self, job: WorldJob) -> bool:
        """Return whether a job has ranks or waits for them. An earlier claim of it may not have ended."""
        if job.state is not WorldJobState.WAITING:
            return job.state is not WorldJobState.RELEASED
        return job is next(other for other in self._jobs if other.job_id == job.job_id)

    def _start_if_free(self, job: WorldJob, block: range) -> None:
        taken = {rank for other in self._jobs for rank in other.block}
        if not block or taken.intersection(block):
            return
        job.enter(WorldJobState.RUNNING)
        job.block, job.leader, job.is_in_time = block, block.start, True
        if job.resizing_since is not None:
            job.resizing_since += self._clock() - job.waiting_since
        job.run = job.run.model_copy(update={"width": len(block)})
        job.slot.watchdog.start_job()
        self._send(job.run, block)

    def _in_hand(self, job: WorldJob) -> JobInHand:
        """Return a job as the allocation sees it."""
        deadline = job.run.deadline_at
        return JobInHand(
            job.job_id,
            remaining_by_width({1: self._remaining_s(job)}, self._widths_of(job), guided=job.is_guided),
            None if deadline is None else (deadline - datetime.now(UTC)).total_seconds(),
            len(job.block),
            is_fixed=not job.may_change,
            priority=job.run.priority,
        )

    def _remaining_s(self, job: WorldJob) -> float:
        """Return how long a job would still run on one rank."""
        if job.remaining_s is not None:
            return job.remaining_s
        return self._unit_s * work_units(job.run.order.plan) * (1 - job.progress.fraction)

    def _widths_of(self, job: WorldJob) -> tuple[int, ...]:
        """Return the widths with which a job fits into the memory, the greatest if it fits with none."""
        widths = [width for width in self._widths if width >= job.least_width]
        capability = self.group.capability
        if capability is None or capability.memory is None:
            return tuple(widths)
        memory, plan = capability.memory, job.run.order.plan
        fitting = (width for width in widths if memory.with_ranks(width).fits(plan))
        return tuple(fitting) or self._widths[-1:]


class Slot:
    """A place for one job at a time in a world: the `Group` of one supervisor.

    Attributes:
        is_spare: it is one of those beyond the number of ranks.
        process: the processes of the start that the supervisor knows, None between two starts.
        blamed: the ids of the supervisor's jobs that are to blame for the end of this start.
        is_closed: the supervisor needs the world no longer.
    """

    def __init__(self, world: GpuWorld, inbox: SlotInbox, watchdog: Watchdog, *, is_spare: bool) -> None:
        self._world = world
        self.is_spare = is_spare
        self.inbox = inbox
        self.watchdog = watchdog
        self.process: GroupProcess | None = None
        self.blamed: set[str] = set()
        self.is_closed = False

    @property
    def capability(self) -> Capability | None:
        """Return what the world can make, None before it was first ready."""
        return self._world.group.capability

    @property
    def start_s(self) -> float:
        """Return how long the last successful start took."""
        return self._world.group.start_s

    @property
    def is_ready(self) -> bool:
        """Return whether the ranks take jobs."""
        with self._world.lock:
            return self._is_present and self._world.group.is_ready

    @property
    def wants_job(self) -> bool:
        """Return whether a job should be claimed now."""
        with self._world.lock:
            return self.is_ready and (not self.is_spare or self._world.has_job_for_each_rank)

    def published_state(self, *, busy: bool) -> GroupState:
        """Return the state as other processes see it."""
        with self._world.lock:
            return self._world.group.published_state(busy=busy or self._world.stands_for_spare(self))

    def check(self, *, busy: bool, may_start: bool) -> str | None:
        """Start the world if it is due; return what is wrong with the running one, None if nothing is."""
        with self._world.lock:
            world, group = self._world, self._world.group
            if self.process is not None and not self._is_present:
                return "the ranks were stopped"
            if world.is_stopping:
                return None
            if self._is_present:
                world.give_back_waiting_jobs()
            if group.process is not None and not group.process.is_alive:
                world.blame_ranks(group.process.dead_ranks)
            failure = group.check(busy=False, may_start=may_start)
            if group.process is not self.process:
                self.process, self.blamed = group.process, set()
            if failure is None and busy and not world.is_waiting(self) and self.watchdog.is_stalled():
                world.blame_slot(self)
                failure = f"a job sent nothing for more than {self.watchdog.limit_s:g} s"
            return failure

    def on_ready(self, ready: Ready) -> None:
        """Accept jobs from now on: all ranks have loaded the model."""
        with self._world.lock:
            if self._is_present and not self._world.group.is_ready:
                self._world.group.on_ready(ready)

    def start_job(self, run: RunJob) -> None:
        """Have a job run, if the world is running."""
        with self._world.lock:
            if self._is_present:
                self._world.start_job(self, run)

    def on_progress(self, progress: Progress | None) -> None:
        """Tell the watchdog that the job reported something."""
        with self._world.lock:
            self.watchdog.on_message(progress)

    def stop_job(self, job_id: str, reason: StopReason) -> None:
        """Have a job stopped that was started, if the world is running."""
        with self._world.lock:
            if self._is_present:
                self._world.stop_job(self, job_id, reason)

    def is_to_blame(self, job_id: str) -> bool:
        """Return whether ranks that failed ran this job, so that its attempt counts."""
        return job_id in self.blamed

    def stop(self) -> None:
        """Kill the world, and return when it is gone. All other slots notice it."""
        with self._world.lock:
            if self._is_present:
                self._world.blame_slot(self)  # if no rank is to blame
        self._world.stop(self.process)
        self.process = None

    def close(self) -> None:
        """Need the world no longer. The last slot kills it."""
        with self._world.lock:
            self.is_closed = True
            process = self._world.group.process if self._world.is_idle else None
        self._world.stop(process)
        self.process = None

    @property
    def _is_present(self) -> bool:
        """Return whether the start that the supervisor knows is the one that runs."""
        return (
            self.process is not None
            and self.process is self._world.group.process
            and not self._world.is_stopping
        )
