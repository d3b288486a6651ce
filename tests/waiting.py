"""Wait for conditions instead of fixed times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_until(
    condition: Callable[[], Value | None], timeout_s: float = 300.0, every_s: float = 0.02
) -> Value:
    """Call `condition` until it returns a true value, and return that value.

    Raises:
        TimeoutError: the value is still false after `timeout_s`, which is long because only a failing test
            waits for it.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {value!r} after {timeout_s} s: {condition}")
        time.sleep(every_s)
    return value
