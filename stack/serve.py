"""`python -m stack serve`: the whole stack in the foreground until it is told to stop."""

from __future__ import annotations

import time

from stack.settings import StackSettings
from stack.up import stack_up


def run(settings: StackSettings) -> int:
    """Serve until Ctrl-C, SIGTERM or SIGHUP; returns 0 then.

    Raises StackError if the stack does not come up, or one of its processes ends by itself.
    """
    try:
        with stack_up(settings, print_line) as stack:
            print_line("stack", f"ready at {stack.url} (Ctrl-C ends everything)")
            while True:
                stack.check()
                time.sleep(0.2)
    except KeyboardInterrupt:
        print_line("stack", "ended")
        return 0


def print_line(name: str, line: str) -> None:
    """Show a line of one of the processes, with its name in front."""
    print(f"{name:6} | {line}\n", end="", flush=True)  # noqa: T201 the foreground is what this is for
