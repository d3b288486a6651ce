"""A process on a leash ends with whoever started it, however that ended.

Every process of a worker puts itself on one first of all. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, sent: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process `sent` when `parent_pid`, which started it, is gone.

    It is the end of the *thread* that started it which counts. Exits if that has happened already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(sent), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before the kernel knew whom to tell
        sys.exit(1)
