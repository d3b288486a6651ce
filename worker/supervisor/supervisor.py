"""The supervisor of one group of ranks: a light process that outlives any crash of the GPUs.

It holds the jobs' leases, keeps a group alive (`worker.supervisor.gpu_group`), hands it one order after the
other, passes cancel, deadline and drain down, and takes progress, saves and films up. While the group only
decodes what is left of a job, the next one is claimed and fetched, so that the GPUs wait neither for the
queue nor for the storage. It computes nothing and waits for nothing: threads put what happens into its inbox
(`worker.supervisor.events`), and `serve` deals with one thing after the other. No torch.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from jobs.capability import Capability
from worker.messages import (
    CheckpointSaved,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobMessage,
    JobStarted,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    Ready,
    RunJob,
    StageDone,
    StopJob,
    VideoDone,
)
from worker.supervisor.checkpoints import CheckpointUploader
from worker.supervisor.consumer import Consumer
from worker.supervisor.disk_space import DiskSpace
from worker.supervisor.events import (
    DrainRequested,
    Event,
    GroupMessage,
    Inbox,
    JobClosed,
    JobFetched,
    StopRequested,
)
from worker.supervisor.fetch import InputFetcher
from worker.supervisor.finalize import Finalizer
from worker.supervisor.gpu_group import GpuGroup
from worker.supervisor.job import Abandoned, ClaimedJob, Completed, Ending, Errored, Requeued
from worker.supervisor.lease_renewer import LeaseRenewer
from worker.supervisor.registration import Heartbeat, Shown

logger = logging.getLogger(__name__)

TICK_S = 0.2


@dataclass(frozen=True)
class SupervisorLimits:
    """How many films may be behind, and how long a drain may take, in seconds.

    `last_words_s` more are for jobs that have to be given back then.
    """

    max_films_behind: int
    drain_s: float
    last_words_s: float = 5.0


@dataclass(frozen=True)
class Components:
    """Who does the work beside the supervisor; all but `life` have threads of their own.

    `ended` is set when the supervisor has ended, for threads that would go on without it.
    """

    life: GpuGroup
    intake: Consumer
    preparation: InputFetcher
    keeper: LeaseRenewer
    closer: Finalizer
    saves: CheckpointUploader
    presence: Heartbeat
    room: DiskSpace
    ended: threading.Event


class Supervisor:
    """Deals with what happens, one thing after the other."""

    def __init__(self, crew: Components, inbox: Inbox, rules: SupervisorLimits) -> None:
        self._life, self._presence, self._keeper = crew.life, crew.presence, crew.keeper
        self._intake, self._preparation = crew.intake, crew.preparation
        self._closer, self._saves, self._ended = crew.closer, crew.saves, crew.ended
        self._room = crew.room
        self._inbox = inbox
        self._rules = rules
        self._capability: Capability | None = None
        self._current: ClaimedJob | None = None  # has the GPUs
        self._decoding: ClaimedJob | None = None  # the same, where it has but to be decoded
        self._next: JobFetched | None = None  # waits for the GPUs
        self._finishing: dict[str, ClaimedJob] = {}  # rank 0 still writes their films
        self._closing: set[ClaimedJob] = set()
        self._asked = False
        self._drain_until: float | None = None

    def serve(self) -> None:
        """Work until asked to end and everything in hand is done or given back."""
        self._presence.start()
        while not self._is_over():
            with suppress(queue.Empty):
                self._deal_with(self._inbox.get(timeout=TICK_S))
            self._look_around()
        self._life.end()
        self._ended.set()
        self._presence.leave()

    def end(self) -> None:
        """Ask it to let go of everything and end, within a step or so; from any thread, or a signal."""
        self._inbox.put(DrainRequested())

    def _close(self, held: ClaimedJob, ending: Ending) -> None:
        """Nothing more is to come from the group for this job."""
        self._closing.add(held)
        self._closer.close(held, ending)

    def _deal_with(self, event: Event) -> None:
        match event:
            case GroupMessage(group, message) if group is self._life.group:
                self._hear(message)
            case JobFetched():
                self._keep(event)
            case StopRequested(held):
                self._leave(held)
            case JobClosed(held):
                self._closing.discard(held)
                self._keeper.let_go(held)
            case DrainRequested():
                self._drain()

    def _hear(self, message: Message | None) -> None:
        match message:
            case None:
                self._give_up("rank 0 is gone")
            case Ready():
                self._life.came_up(message)
                self._capability = message.capability
            case GroupFailed():
                self._give_up(message.message)
            case RunJob() | StopJob():
                raise AssertionError(message)  # they are said, not heard
            case _:
                if held := self._with_group().get(message.job_id):
                    self._hear_of(held, message)

    def _hear_of(self, held: ClaimedJob, message: JobMessage) -> None:
        match message:
            case JobStarted():
                self._life.heard(None)
            case ProgressReport():
                held.progress, held.timings_s = message.progress, message.timings_s
                held.stages.enter(message.progress)
                self._life.heard(message.progress)
            case StageDone():
                held.stages.add(message.stage)
            case LastDecode():
                self._decoding = held
            case CheckpointSaved():
                self._saves.keep(held, message.save)
            case GpusReleased():
                held.stages.leave()
                self._current = self._decoding = None
                self._finishing[held.job_id] = held
            case VideoDone():
                held.timings_s = message.timings_s
                self._from_group(held, Completed(message.film))
            case JobStopped():
                self._from_group(held, Abandoned(message.reason))
            case JobFailed():
                held.timings_s = message.timings_s
                self._from_group(held, Errored(message.error))

    def _from_group(self, held: ClaimedJob, ending: Ending) -> None:
        if held is self._current:
            self._current = self._decoding = None
        self._finishing.pop(held.job_id, None)
        self._close(held, ending)

    def _keep(self, prepared: JobFetched) -> None:
        self._asked = False
        held, work = prepared.held, prepared.work
        if not isinstance(work, RunJob):
            self._close(held, work)
        elif held.wish:
            self._close(held, Abandoned(held.wish))
        elif self._can_take():
            self._next = prepared
        else:
            self._close(held, Requeued(crashed=False))

    def _begin_next(self) -> None:
        """The group gets the job that waits for it, as soon as it can."""
        if self._next and not self._current:
            held, work = self._next.held, self._next.work
            assert isinstance(work, RunJob)
            self._current, self._next = held, None
            held.stages.waited()
            self._life.hand_over(work)

    def _leave(self, held: ClaimedJob) -> None:
        """The verdict on a job changed: if it is not to go on, the group has to leave it, if it has it."""
        if held.wish and held is self._current:
            logger.info("job %s is to be left: %s", held.job_id, held.verdict)
            self._life.say(StopJob(job_id=held.job_id, reason=held.wish))
        elif held.wish and self._next and held is self._next.held:
            self._drop_next(Abandoned(held.wish))

    def _drop_next(self, ending: Ending) -> None:
        if self._next:
            held, self._next = self._next.held, None
            self._close(held, ending)

    def _look_around(self) -> None:
        trouble = self._life.look(busy=bool(self._with_group()), may_start=self._drain_until is None)
        if trouble:
            self._give_up(trouble)
        if self._drain_until is not None and time.monotonic() > self._drain_until:
            self._let_go(crashed=False)
        self._begin_next()
        self._ask()
        self._show()

    def _can_take(self) -> bool:
        """Whether a job can begin now, or will soon: its turn comes when the present one is decoded."""
        behind = len(self._finishing) + len(self._closing) + (self._current is not None)
        return (
            self._life.is_up
            and self._next is None
            and self._current is self._decoding
            and self._drain_until is None
            and self._room.is_enough
            and behind < self._rules.max_films_behind
        )

    def _ask(self) -> None:
        can_take = self._can_take()
        if can_take and not self._asked:
            self._intake.ask()
        elif self._asked and not can_take:
            self._intake.withdraw()
        self._asked = can_take

    def _show(self) -> None:
        current = self._current
        state = self._life.state(busy=current is not None)
        if state == "ready" and not self._room.is_enough:
            state = "full"
        self._presence.show(Shown(state, current.job_id if current else None, self._capability))

    def _give_up(self, trouble: str) -> None:
        """The group is not sound: its jobs go back to the queue, and another is started."""
        logger.error("the group is given up: %s", trouble)
        self._let_go(crashed=True)

    def _let_go(self, *, crashed: bool) -> None:
        self._life.end()
        for held in self._with_group().values():
            self._from_group(held, Requeued(crashed=crashed))
        self._drop_next(Requeued(crashed=False))  # the group never had it

    def _with_group(self) -> dict[str, ClaimedJob]:
        """The jobs of which rank 0 has something to do."""
        current = {self._current.job_id: self._current} if self._current else {}
        return {**self._finishing, **current}

    def _drain(self) -> None:
        if self._drain_until is not None:
            return
        logger.info("draining")
        self._drain_until = time.monotonic() + self._rules.drain_s
        self._intake.stop()
        self._preparation.stop()
        self._closer.hurry()
        self._drop_next(Requeued(crashed=False))
        if self._current:
            self._life.say(StopJob(job_id=self._current.job_id, reason="drain"))

    def _is_over(self) -> bool:
        if self._drain_until is None:
            return False
        if time.monotonic() > self._drain_until + self._rules.last_words_s:
            return True
        return self._intake.is_over and self._inbox.empty() and not self._with_group() and not self._closing
