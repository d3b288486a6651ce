"""Protect the processes of a worker: end them with their parent, and hide their environment. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4


def die_with_parent(parent_pid: int, death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process `death_signal` when its parent `parent_pid` is gone.

    What counts is the end of the parent's *thread* that started this process. Exits at once if the parent
    is gone already.
    """
    _prctl(PR_SET_PDEATHSIG, int(death_signal))
    if os.getppid() != parent_pid:  # it died before the call
        sys.exit(1)


def hide_environment() -> None:
    """Keep other processes of this user, such as ranks, from reading this one's memory and environment.

    Root still can. Programs that this process starts are not affected.
    """
    _prctl(PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
