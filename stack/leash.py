"""Run a program that cannot outlive whoever started it, not even when that is killed.

Run as a script in front of the program: `python leash.py PARENT SIGNAL PROGRAM [ARGUMENT…]`. It asks the
kernel for the signal at the parent's death and becomes the program. Being a program of its own, it needs no
code between fork and exec, where a threaded parent may run none.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def leashed(command: Sequence[str], at_death: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line that runs `command` on a leash held by this process's calling thread.

    Args:
        command: the program and its arguments.
        at_death: what the program gets when the thread that started it ends.
    """
    return [sys.executable, "-IS", __file__, str(os.getpid()), str(int(at_death)), *command]


def _become(parent: int, at_death: int, command: list[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, at_death):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the kernel knew
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
