"""Run Python modules as child processes, forward their output line by line, and stop them in time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from stack.die_with_parent import dies_with_parent

WriteLine = Callable[[str, str], None]
"""Takes the name of a program and one line of its output."""


@dataclass(frozen=True)
class Program:
    """A Python module to run, and the name to show for it.

    It is killed if it runs for longer than `stop_timeout_s` after SIGTERM. With a `niceness` above 0, other
    processes get the processor first.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    stop_timeout_s: float = 30.0
    niceness: int = 0

    @property
    def command(self) -> list[str]:
        """Return the complete command line."""
        command = [sys.executable, "-m", self.module, *self.arguments]
        return dies_with_parent(["nice", "-n", str(self.niceness), *command] if self.niceness else command)


@contextmanager
def running_program(
    program: Program, environment: Mapping[str, str], write_line: WriteLine
) -> Iterator[subprocess.Popen[str]]:
    """Start a program, yield its process, and stop it: SIGTERM first, SIGKILL after its timeout."""
    process = subprocess.Popen(
        program.command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C must reach this process only: it stops the others in order
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_forward, args=(program.name, process.stdout, write_line), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        _stop(process, program.stop_timeout_s)
        reader.join(timeout=5.0)


def _stop(process: subprocess.Popen[str], timeout_s: float) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _forward(name: str, lines: IO[str], write_line: WriteLine) -> None:
    with lines:
        for line in lines:
            write_line(name, line.rstrip("\n"))
