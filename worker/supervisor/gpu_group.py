"""Keep a GPU group running: start it, notice when it died or hangs, start it again with backoff.

The supervisor calls `check` regularly, and decides what becomes of the jobs when it reports a failure. The
states and their transitions are in `worker.supervisor.states`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jobs.capability import Capability
from jobs.record import Progress
from jobs.registration import GroupState
from jobs.store.holder import StopReason
from worker.backoff import Backoff
from worker.messages import Ready, RunJob, StopJob
from worker.supervisor.group_process import GroupProcess
from worker.supervisor.states import GpuGroupState, change
from worker.supervisor.watchdog import Watchdog


@dataclass(frozen=True)
class GroupLimits:
    """Limits on the time of a group, in seconds; see `worker.settings`."""

    start_limit_s: float
    stall_s: float
    step_stall_s: float
    max_failed_starts: int
    longest_pause_s: float


class Group(Protocol):
    """The GPUs of one supervisor: all ranks of a `GpuGroup`, or a part of a world (`gpu_world.Slot`)."""

    @property
    def process(self) -> GroupProcess | None:
        """Return the processes of the present start, None between two starts."""

    @property
    def capability(self) -> Capability | None:
        """Return what the group can make, None before it was first ready."""

    @property
    def start_s(self) -> float:
        """Return how long the last successful start took."""

    @property
    def is_ready(self) -> bool:
        """Return whether the ranks take jobs."""

    @property
    def wants_job(self) -> bool:
        """Return whether a job should be claimed now, if the supervisor has none."""

    def published_state(self, *, busy: bool) -> GroupState:
        """Return the state as other processes see it."""

    def check(self, *, busy: bool, may_start: bool) -> str | None:
        """Start the group if it is due; return what is wrong with the running one, None if nothing is."""

    def on_ready(self, ready: Ready) -> None:
        """Accept jobs from now on."""

    def start_job(self, run: RunJob) -> None:
        """Have a job run, and watch for its messages."""

    def on_progress(self, progress: Progress | None) -> None:
        """Take notice that the job reported something."""

    def stop_job(self, job_id: str, reason: StopReason) -> None:
        """Have a job stopped that was started."""

    def is_to_blame(self, job_id: str) -> bool:
        """Return whether the ranks that failed ran this job, so that its attempt counts."""

    def stop(self) -> None:
        """Kill the group, and return when it is gone."""

    def close(self) -> None:
        """Have nothing run any more: the supervisor ends."""


class GpuGroup:
    """A group that is started again whenever it fails, at most one process group at a time.

    Args:
        start: starts the processes of the group.
        limits: how long a group may take.
        clock: monotonic seconds.

    Attributes:
        process: the processes of the present start, None between two starts.
        capability: what the group can make, since it was first ready.
        start_s: how long the last successful start took.
    """

    def __init__(
        self,
        start: Callable[[], GroupProcess],
        limits: GroupLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start_process = start
        self._limits = limits
        self._clock = clock
        self._backoff = Backoff(limits.max_failed_starts, limits.longest_pause_s)
        self._watchdog = Watchdog(limits.stall_s, limits.step_stall_s, clock)
        self._start_at = clock()
        self._started_at = 0.0
        self.state = GpuGroupState.DOWN
        self.process: GroupProcess | None = None
        self.capability: Capability | None = None
        self.start_s = 0.0

    @property
    def is_ready(self) -> bool:
        """Return whether the ranks take jobs."""
        return self.state is GpuGroupState.READY

    @property
    def wants_job(self) -> bool:
        """Return whether a job should be claimed now, if the supervisor has none."""
        return self.is_ready

    def published_state(self, *, busy: bool) -> GroupState:
        """Return the state as other processes see it."""
        if self.is_ready:
            return "busy" if busy else "ready"
        return "broken" if self._backoff.is_exhausted else "starting"

    def check(self, *, busy: bool, may_start: bool) -> str | None:
        """Start the group if it is due; return what is wrong with the running one, None if nothing is.

        `busy` says that rank 0 has work, so it must send something now and then.
        """
        now = self._clock()
        if self.process is None:
            return self._start(now) if may_start and now >= self._start_at else None
        if not self.process.is_alive:
            return "one of its processes died"
        is_late = now - self._started_at > self._limits.start_limit_s
        if self.state is GpuGroupState.STARTING and is_late:
            return f"it was not ready within {self._limits.start_limit_s:g} s"
        if busy and self._watchdog.is_stalled():
            return f"it sent nothing for more than {self._watchdog.limit_s:g} s"
        return None

    def on_ready(self, ready: Ready) -> None:
        """Accept jobs from now on: all ranks have loaded the model."""
        assert self.process is not None
        self.state = change(self.state, GpuGroupState.READY)
        self.process.set_ranks(ready.pids)
        self.capability = ready.capability
        self.start_s = self._clock() - self._started_at
        self._backoff = self._backoff.after_success()

    def start_job(self, run: RunJob) -> None:
        """Hand a job to rank 0, and start to watch for its messages."""
        self._watchdog.start_job()
        if self.process is not None:
            self.process.send(run)

    def on_progress(self, progress: Progress | None) -> None:
        """Tell the watchdog that rank 0 reported about its job."""
        self._watchdog.on_message(progress)

    def stop_job(self, job_id: str, reason: StopReason) -> None:
        """Tell rank 0 to stop a job, if the group is running."""
        if self.process is not None:
            self.process.send(StopJob(job_id=job_id, reason=reason))

    def is_to_blame(self, job_id: str) -> bool:
        """Return True: all ranks run every job."""
        return True

    def stop(self) -> None:
        """Kill the group, and return when it is gone. A group that was not ready counts as a failed start."""
        if self.process is None:
            return
        self.process.kill()
        self.process = None
        if self.state is GpuGroupState.STARTING:
            self._back_off()
        else:
            self.state = change(self.state, GpuGroupState.DOWN)
            self._start_at = self._clock() + self._backoff.pause_s

    def close(self) -> None:
        """Kill the group."""
        self.stop()

    def _start(self, now: float) -> str | None:
        """Start the processes. Return why they cannot be started: the group's folder cannot be written."""
        self.state = change(self.state, GpuGroupState.STARTING)
        self._started_at = now
        try:
            self.process = self._start_process()
        except OSError as error:
            self._back_off()
            return f"it cannot be started: {error}"
        return None

    def _back_off(self) -> None:
        """Wait before the next start, because this one failed."""
        self.state = change(self.state, GpuGroupState.BACKING_OFF)
        self._backoff = self._backoff.after_failure()
        self._start_at = self._clock() + self._backoff.pause_s
