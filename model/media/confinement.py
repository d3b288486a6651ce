"""Confine a process before it reads untrusted data: limit its memory, time and system calls.

A confined process can compute, and read and write what it has open. It cannot open a file, make a socket,
start a process or a thread, signal or inspect other processes, or lift its own limits. Nothing here needs
root.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import signal
import struct
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column in the table of system calls, and the kernel's AUDIT_ARCH constant."""
_ALLOWED_CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "getcwd": (79, 17),  # Pillow compares absolute paths, even for files without a path
    "gettimeofday": (96, 169),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
"""System calls that decoding needs, with their numbers on x86_64 and aarch64. All others fail with EPERM."""

# Classic BPF over `struct seccomp_data`: the call's number at offset 0, the architecture at 4.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL_WITH_EPERM, _KILL = 0x7FFF0000, 0x00050001, 0x80000000


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends. Raises ProcessLookupError if it has ended."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise ProcessLookupError("the parent process has ended")


def limit(memory_bytes: int, timeout_s: float) -> None:
    """Limit the memory and time of this process, and forbid new files, processes and core dumps.

    `memory_bytes` come on top of what it has now. The kernel kills it when the time is over.
    """
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: address_space + memory_bytes,
        resource.RLIMIT_CPU: math.ceil(timeout_s) + 1,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    _prctl(_PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(timeout_s, 1e-3))  # 0 would be no limit


def filter_system_calls() -> None:
    """Forbid all system calls that decoding does not need. Raises OSError where this is not supported."""
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(f"the table of system calls has no column for {platform.machine()}")
    program = _filter(*_ARCHITECTURES[platform.machine()])
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and their address
    arguments = ctypes.create_string_buffer(
        struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
    )
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(arguments))


def can_filter_system_calls() -> bool:
    """Return whether `filter_system_calls` works here, as tried in a child process."""
    pid = os.fork()
    if pid == 0:
        try:
            filter_system_calls()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _filter(column: int, architecture: int) -> bytes:
    """Return the filter as an array of `struct sock_filter`. Calls of other ABIs (i386, x32) are refused."""
    numbers = [numbers[column] for numbers in _ALLOWED_CALLS.values()]
    lines = [
        (_LOAD, 0, 0, 4),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        *((_JUMP_IF_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _FAIL_WITH_EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _prctl(option: int, *values: int) -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(option, *map(ctypes.c_ulong, [*values, 0, 0, 0, 0][:4])):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
