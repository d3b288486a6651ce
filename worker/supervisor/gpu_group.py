"""Keeps a group alive: starts it, notices when it died or hangs, starts another, later each time.

The supervisor looks every moment and decides what becomes of the jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from jobs.record import Progress
from jobs.registration import GroupState
from worker.backoff import Backoff
from worker.messages import Message, Ready, RunJob
from worker.supervisor.group_process import GroupProcess, Launch
from worker.supervisor.watchdog import Watchdog


@dataclass(frozen=True)
class GroupLimits:
    """How long a group may take, in seconds; see `worker.settings`."""

    start_limit_s: float
    stall_s: float
    step_stall_s: float
    max_failed_starts: int
    longest_pause_s: float


class GpuGroup:
    """One group after the other, at most one at a time."""

    def __init__(
        self, launch: Launch, patience: GroupLimits, hear: Callable[[GroupProcess, Message | None], None]
    ) -> None:
        self._launch = launch
        self._patience = patience
        self._hear = hear
        self._breaker = Backoff(patience.max_failed_starts, patience.longest_pause_s)
        self._watchdog = Watchdog(patience.stall_s, patience.step_stall_s)
        self._start_at = 0.0
        self._started_at = 0.0
        self.group: GroupProcess | None = None
        self.is_up = False

    def state(self, *, busy: bool) -> GroupState:
        """As others are told."""
        if self.is_up:
            return "busy" if busy else "ready"
        return "broken" if self._breaker.is_open else "starting"

    def look(self, *, busy: bool, may_start: bool) -> str | None:
        """Start a group if it is time; say what is wrong with the one that there is."""
        now = time.monotonic()
        if self.group is None:
            if may_start and now >= self._start_at:
                self.group, self._started_at = GroupProcess(self._launch, self._hear), now
            return None
        if not self.group.is_alive:
            return "a process of it died"
        if not self.is_up and now - self._started_at > self._patience.start_limit_s:
            return f"it was not ready within {self._patience.start_limit_s:g} s"
        if busy and self._watchdog.stalled():
            return f"it was silent for more than {self._watchdog.limit_s:g} s"
        return None

    def came_up(self, ready: Ready) -> None:
        """The group is ready."""
        assert self.group is not None
        self.group.knows(ready.pids)
        self.is_up = True
        self._breaker = self._breaker.after_success()

    def hand_over(self, run: RunJob) -> None:
        """Give it an order; from now on it has to say something now and then."""
        self._watchdog.begin()
        self.say(run)

    def heard(self, progress: Progress | None) -> None:
        """It said something about its order."""
        self._watchdog.heard(progress)

    def say(self, message: Message) -> None:
        """Tell rank 0, if there is a group."""
        if self.group is not None:
            self.group.say(message)

    def end(self) -> None:
        """Kill the group, whatever it does, and wait until it is gone."""
        if self.group is None:
            return
        self.group.kill()
        if not self.is_up:
            self._breaker = self._breaker.after_failure()
        self.group, self.is_up = None, False
        self._start_at = time.monotonic() + self._breaker.pause_s
