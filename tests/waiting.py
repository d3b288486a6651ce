"""Waiting for conditions, never for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value], timeout_s: float = 60.0, every_s: float = 0.02) -> Value:
    """Ask `condition` until it gives something true, and return that.

    Raises TimeoutError; the timeout is there to end a broken test, so it is generous.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {value!r} after {timeout_s} s: {condition}")
        time.sleep(every_s)
    return value
