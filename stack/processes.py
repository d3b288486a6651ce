"""Programs that run beside us: started on a leash, their lines passed on, ended in time.

`stack.up` starts the API and the worker by it. It knows nothing of what they do.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from stack.leash import leashed

WriteLine = Callable[[str, str], None]
"""Takes the name of a program and a line that it wrote."""


@dataclass(frozen=True)
class Program:
    """A Python module to run, under a name for people.

    It is killed if it takes longer than `stop_timeout_s` to end. With a `niceness` above 0 it leaves the
    processor to others first.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    stop_timeout_s: float = 30.0
    niceness: int = 0

    @property
    def command(self) -> list[str]:
        """The whole command line."""
        command = [sys.executable, "-m", self.module, *self.arguments]
        return leashed(["nice", "-n", str(self.niceness), *command] if self.niceness else command)


@contextmanager
def running(
    program: Program, environment: Mapping[str, str], write_line: WriteLine
) -> Iterator[subprocess.Popen[str]]:
    """Run a program; at the end ask it to stop, and kill it if it does not."""
    process = subprocess.Popen(
        program.command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for us; we end the others in order
    )
    assert process.stdout is not None
    pump = threading.Thread(target=_pass_on, args=(program.name, process.stdout, write_line), daemon=True)
    pump.start()
    try:
        yield process
    finally:
        end(process, program.stop_timeout_s)
        pump.join(timeout=5.0)


def end(process: subprocess.Popen[str], timeout_s: float) -> None:
    """Ask a process to end, kill it after `timeout_s`, and wait for it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pass_on(name: str, lines: IO[str], write_line: WriteLine) -> None:
    with lines:
        for line in lines:
            write_line(name, line.rstrip("\n"))
