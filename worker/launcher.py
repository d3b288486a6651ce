"""Run one supervisor process for each GPU group, so that each can fail alone, or one for all of a world.

The launcher starts them, starts those again that died, and stops them when it is asked to stop. It uses
neither Redis nor GPUs, so it can answer health probes (`worker.health`) whatever happens to these.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from worker.backoff import Backoff
from worker.health import GroupHealth, HealthReports, serve_health
from worker.settings import WorkerSettings
from worker.weight_memory import create_weight_memory, inherited_files, weight_memory_option

logger = logging.getLogger(__name__)

EXIT_UNUSABLE = 2  # exit status of a supervisor that would fail in the same way again
POLL_S = 0.2
LONGEST_PAUSE_S = 30.0
GOOD_START_S = 60.0  # a supervisor that ran for this long did start


class RestartingProcess:
    """A process of this worker, started again whenever it died.

    Args:
        name: what the log calls it.
        command: its command line, to which its health pipe is added.
        stuck_s: a process that has sent a report and sends none for this long is stuck.
        environment: its environment; default: that of this process.
        own_session: the process does not get Ctrl-C.
        open_files: descriptors that stay open in the process.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        stuck_s: float,
        environment: Mapping[str, str] | None = None,
        *,
        own_session: bool = False,
        open_files: Sequence[int] = (),
    ) -> None:
        self._name = name
        self._stuck_s = stuck_s
        self._environment = environment
        self._own_session = own_session
        self._open_files = open_files
        self._reports: HealthReports | None = None
        self._command = command
        self._backoff = Backoff(max_failures=1, longest_pause_s=LONGEST_PAUSE_S)
        self._start_at = 0.0
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def poll(self) -> int | None:
        """Start the process if it is due. Return its exit status if it just died, else None."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._start_at:
                self._start(now)
            return None
        if self._reports is not None:
            self._reports.read()
        status = self._process.poll()
        if status is not None:
            had_started = now - self._started_at > GOOD_START_S
            self._backoff = (self._backoff.after_success() if had_started else self._backoff).after_failure()
            self._start_at = now + self._backoff.pause_s
            self._process = None
            self._close_reports()
            logger.error("%s ended with status %d", self._name, status)
        return status

    def health(self) -> GroupHealth:
        """Return what the process last reported. Any thread may call it."""
        reports = self._reports
        return "down" if reports is None else reports.health()

    def terminate(self) -> None:
        """Ask the process to drain."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, limit_s: float = math.inf) -> int:
        """Wait for the end of the process, reading its reports, and return its exit status.

        It is killed if it runs for longer than `limit_s`.
        """
        if self._process is None:
            return 0
        deadline = time.monotonic() + limit_s
        while (status := self._process.poll()) is None:
            if self._reports is not None:
                self._reports.read()
            if time.monotonic() > deadline:
                self._process.kill()
            time.sleep(POLL_S)
        self._close_reports()
        return status

    def _start(self, now: float) -> None:
        reading, writing = os.pipe()
        try:
            command = [*self._command, "--health-pipe", str(writing)]
            self._process = subprocess.Popen(
                command,
                pass_fds=(writing, *self._open_files),
                env=self._environment,
                start_new_session=self._own_session,
            )
            self._started_at = now
        finally:
            os.close(writing)
        self._reports = HealthReports(reading, self._stuck_s)

    def _close_reports(self) -> None:
        if self._reports is not None:
            self._reports.close()
            self._reports = None


class Launcher:
    """Run the supervisors of all groups.

    Args:
        num_groups: the number of supervisors.
        command: returns the command line of a group's supervisor, to which its health pipe is added.
        stuck_s: a supervisor that sends no report for this long is stuck.
        open_files: descriptors that stay open in all supervisors.
    """

    def __init__(
        self,
        num_groups: int,
        command: Callable[[int], Sequence[str]],
        stuck_s: float,
        open_files: Sequence[int] = (),
    ) -> None:
        self._supervisors = [
            RestartingProcess(
                f"the supervisor of group {index}", command(index), stuck_s, open_files=open_files
            )
            for index in range(num_groups)
        ]
        self._is_stopping = False

    def stop(self) -> None:
        """Ask `run` to stop all supervisors and return. A signal handler may call it."""
        self._is_stopping = True

    def health(self) -> list[GroupHealth]:
        """Return the health of each group. Any thread may call it."""
        return [supervisor.health() for supervisor in self._supervisors]

    def run(self) -> int:
        """Keep the supervisors running until stopped, or until one of them can never work.

        Return the exit status: the largest of the supervisors' last ones.
        """
        statuses: list[int | None] = []
        while not self._is_stopping and EXIT_UNUSABLE not in statuses:
            statuses = [supervisor.poll() for supervisor in self._supervisors]
            time.sleep(POLL_S)
        for supervisor in self._supervisors:
            supervisor.terminate()
        last = [*statuses, *(supervisor.wait() for supervisor in self._supervisors)]
        return max(abs(status or 0) for status in last)


def supervisor_command(weight_memory: int | None, index: int) -> list[str]:
    """Return the command line of a group's supervisor, which dies with this process."""
    return [
        *(sys.executable, "-m", "worker", "--group", str(index), "--parent", str(os.getpid())),
        *weight_memory_option(weight_memory),
    ]


def launch(settings: WorkerSettings) -> int:
    """Run all supervisors until SIGTERM or SIGINT. Return the exit status."""
    memory = create_weight_memory()
    launcher = Launcher(
        settings.num_supervisors,
        partial(supervisor_command, memory),
        settings.stuck_s,
        open_files=inherited_files(memory),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: launcher.stop())
    with ExitStack() as stack:
        return launcher.run() if offer_probes(stack, settings, launcher.health) else EXIT_UNUSABLE


def offer_probes(
    stack: ExitStack, settings: WorkerSettings, groups: Callable[[], Sequence[GroupHealth]]
) -> bool:
    """Answer health probes on `HEALTH_PORT` until `stack` is closed. Return whether the port can be used."""
    if settings.health_port is None:
        return True
    try:
        stack.enter_context(serve_health(settings.health_host, settings.health_port, groups))
    except OSError as error:
        logger.error("HEALTH_PORT %d cannot be used: %s", settings.health_port, error)  # noqa: TRY400
        return False
    return True
