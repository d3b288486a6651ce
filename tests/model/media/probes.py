"""Decoders that attack the process which runs them, as a file with control over a real decoder would."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from model.media.protocol import Output

PTRACE_ATTACH, PROCESS_VM_READV, MEMFD_CREATE = 16, 310, 319  # system calls of x86_64, and an operation


def call(name: str, *values: Any) -> None:
    """Call a function of libc. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*values) == -1:
        raise OSError(ctypes.get_errno(), name)


ATTACKS: dict[str, Callable[[], object]] = {
    "connect to the network": socket.socket,
    "listen on a Unix socket": lambda: socket.socket(socket.AF_UNIX),
    "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "read its environment": lambda: os.open("/proc/self/environ", os.O_RDONLY),
    "write a file": lambda: os.open("/tmp/written-by-a-decoder", os.O_WRONLY | os.O_CREAT),
    "list a folder": lambda: os.listdir("/"),  # noqa: PTH208
    "look at a file": lambda: os.stat("/etc/passwd"),  # noqa: PTH116
    "remove a file": lambda: os.unlink("/tmp/removed-by-a-decoder"),  # noqa: PTH108
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "start a program": lambda: subprocess.run(["/bin/true"], check=False),
    "fork": lambda: os._exit(0) if os.fork() == 0 else None,
    "start a thread": lambda: threading.Thread(target=print).start(),
    "signal its parent": lambda: os.kill(os.getppid(), signal.SIGCONT),
    "trace its parent": lambda: call("ptrace", PTRACE_ATTACH, os.getppid(), None, None),
    "read memory of its parent": lambda: call("syscall", PROCESS_VM_READV, os.getppid(), None, 0, None, 0, 0),
    "make memory that is not in an address space": lambda: call("syscall", MEMFD_CREATE, b"", 0),
    "lift its limits": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
    "stop its clock": lambda: signal.setitimer(signal.ITIMER_REAL, 0),
    "ignore its clock": lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN),
    "outlive its parent": lambda: call("prctl", 1, 0, 0, 0, 0),
    "become another user": lambda: os.setuid(12345),
    "duplicate a descriptor": lambda: os.dup(1),
}


def attack(source: BinaryIO, name: str) -> Output:
    """Try it; the error number, or None if it was allowed."""
    try:
        ATTACKS[name]()
    except OSError as error:
        return Output({"errno": error.errno})
    except (RuntimeError, ValueError) as error:  # Python's, for threads and limits
        refused = str(error) in {"can't start new thread", "not allowed to raise maximum limit"}
        return Output({"errno": errno.EPERM if refused else None})
    return Output({"errno": None})


def inherited(source: BinaryIO) -> Output:
    """What it has from the processes before it: environment and open descriptors."""
    descriptors = []
    for descriptor in range(256):
        try:
            os.lseek(descriptor, 0, os.SEEK_CUR)
        except OSError as error:
            if error.errno == errno.EBADF:
                continue
        descriptors.append(descriptor)
    return Output({"environment": dict(os.environ), "descriptors": descriptors})


def hang(source: BinaryIO) -> Output:
    """Wait without an end."""
    while True:
        time.sleep(60)


def compute(source: BinaryIO) -> Output:
    """Compute without an end."""
    while True:
        pass


def allocate(source: BinaryIO, size_bytes: int) -> Output:
    """Use memory."""
    return Output({"last": bytearray(size_bytes)[-1]})


def crash(source: BinaryIO) -> Output:
    """Read from an address where nothing is."""
    return Output({"read": ctypes.string_at(8)[0]})


def lie(source: BinaryIO, facts: Any, size_bytes: int, real_bytes: int) -> Output:
    """Reply whatever it is asked to."""
    return Output(facts, size_bytes, [bytes(real_bytes)])


def nest(source: BinaryIO) -> Output:
    """Reply JSON that is nested too deeply to be parsed."""
    os.write(max(inherited(source).facts["descriptors"]), b"[" * 60_000 + b"\n")
    os._exit(0)


def wait(source: BinaryIO, seconds: float) -> Output:
    """Take some time, and tell in which process and from when to when (CLOCK_MONOTONIC, seconds)."""
    began = time.monotonic()
    time.sleep(seconds)
    facts = {"pid": os.getpid(), "content": source.read().decode()}
    return Output(facts | {"began": began, "ended": time.monotonic()})


def wait_for_content(source: BinaryIO) -> Output:
    """Take until the file has content, and tell what `wait` tells."""
    began = time.monotonic()
    while not source.read():
        time.sleep(0.01)
    return Output({"pid": os.getpid(), "began": began, "ended": time.monotonic()})


def wait_in_old_server(_source: BinaryIO, started_before: float) -> Output:
    """Take half a minute in a fork server that was started before this time, else none. Tell the process."""
    if started_before > _STARTED:
        time.sleep(30)
    return Output({"pid": os.getpid()})


_STARTED = time.monotonic()
DECODERS = {
    function.__name__: function
    for function in (
        *(attack, inherited, hang, compute, allocate, crash, lie, nest),
        *(wait, wait_for_content, wait_in_old_server),
    )
} | {"encode_png": lie, "count_frames": lie, "read_frames": lie}
