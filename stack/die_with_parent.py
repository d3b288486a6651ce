"""Run a program that ends when the process that started it ends, even if that process is killed.

Usage: `python die_with_parent.py PARENT_PID SIGNAL PROGRAM [ARGUMENT…]`. This script asks the kernel to send
SIGNAL when the parent ends, then replaces itself with the program. Linux only.

It is a separate script because a process with threads must not run Python code between fork and exec. It uses
the standard library only, because make runs it by its path.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def dies_with_parent(command: Sequence[str], death_signal: signal.Signals = signal.SIGKILL) -> list[str]:
    """Return the command line that runs `command` and ends it when the calling thread ends.

    Args:
        command: The program and its arguments.
        death_signal: The signal that the program receives when the thread that started it ends.
    """
    return [sys.executable, "-IS", __file__, str(os.getpid()), str(int(death_signal)), *command]


def _exec(parent_pid: int, death_signal: int, command: list[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # the parent ended before the kernel knew of the request
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    _exec(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
