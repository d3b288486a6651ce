"""Run programs that end no later than this process, with all that they have started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil

from stack.die_with_parent import dies_with_parent


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Iterator[str]]:
    """Start a program and yield the lines that it writes. When the block ends, kill what still runs of it.

    The program gets this process's environment with `environment` on top.

    Raises:
        CalledProcessError: the program failed, and the block did not.
    """
    with subprocess.Popen(
        dies_with_parent(command), env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield iter(process.stdout)
        except BaseException:
            kill_descendants(process.pid)
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def kill_descendants(pid: int | None = None) -> None:
    """Kill all processes that a process (by default this one) has started, and those that they have started.

    They may be in sessions of their own, where no signal to a group reaches them.
    """
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
