"""The parent of a worker's supervisors: one process for each group, so that each fails alone.

It starts them, starts again those that died, and ends them with itself. It touches neither Redis nor GPUs.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from worker.backoff import Backoff

logger = logging.getLogger(__name__)

USELESS = 2  # exit status of a supervisor that nothing is gained by starting again
LOOK_S = 0.2
LONGEST_PAUSE_S = 30.0
GOOD_FOR_S = 60.0  # one that lived so long did not fail to start


class SupervisorProcess:
    """One supervisor after the other for one group."""

    def __init__(self, index: int, command: Sequence[str]) -> None:
        self._index = index
        self._command = command
        self._breaker = Backoff(max_failures=1, longest_pause_s=LONGEST_PAUSE_S)
        self._start_at = 0.0
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> int | None:
        """Start it if it is not there and it is time; its exit status if it just died."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._start_at:
                self._process, self._started_at = subprocess.Popen(self._command), now
            return None
        status = self._process.poll()
        if status is not None:
            lasted = now - self._started_at > GOOD_FOR_S
            self._breaker = (self._breaker.after_success() if lasted else self._breaker).after_failure()
            self._start_at = now + self._breaker.pause_s
            self._process = None
            logger.error("the supervisor of group %d ended with status %d", self._index, status)
        return status

    def end(self) -> None:
        """Ask it to drain."""
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        return self._process.wait() if self._process is not None else 0


class Launcher:
    """All groups of a worker. `command` gives the command line of a group's supervisor."""

    def __init__(self, num_groups: int, command: Callable[[int], Sequence[str]]) -> None:
        self._charges = [SupervisorProcess(index, command(index)) for index in range(num_groups)]
        self._asked = False

    def end(self) -> None:
        """Ask for the end; from a signal."""
        self._asked = True

    def watch(self) -> int:
        """Keep the supervisors alive until asked to end; gives the exit status."""
        statuses = []
        while not self._asked and USELESS not in statuses:
            statuses = [charge.look() for charge in self._charges]
            time.sleep(LOOK_S)
        for charge in self._charges:
            charge.end()
        return max(abs(status or 0) for status in [*statuses, *(charge.wait() for charge in self._charges)])


def supervisor_command(index: int) -> list[str]:
    """The command line of a group's supervisor, on a leash to this process."""
    return [sys.executable, "-m", "worker", "--group", str(index), "--parent", str(os.getpid())]


def watch(num_groups: int) -> int:
    """The body of the parent's process."""
    parent = Launcher(num_groups, supervisor_command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: parent.end())
    return parent.watch()
