"""`python -m stack serve`: run the whole stack in the foreground until it is told to stop."""

from __future__ import annotations

import time

from stack.settings import StackSettings
from stack.stack import running_stack


def run(settings: StackSettings) -> int:
    """Serve until Ctrl-C, SIGTERM or SIGHUP, then return 0.

    Raises:
        StackError: The stack does not start, or one of its processes exits.
    """
    try:
        with running_stack(settings, print_line) as stack:
            print_line("stack", f"ready at {stack.url} (press Ctrl-C to stop)")
            while True:
                stack.check()
                time.sleep(0.2)
    except KeyboardInterrupt:
        print_line("stack", "stopped")
        return 0


def print_line(program: str, line: str) -> None:
    """Print a line of a program's output after the program's name."""
    print(f"{program:6} | {line}\n", end="", flush=True)  # noqa: T201 printing is this command's purpose
