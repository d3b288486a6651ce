"""Repeat a call while Redis or the storage is unavailable."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from jobs.errors import Unavailable

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0


class JobInterrupted(Exception):
    """Work for a job was interrupted, because the job is to stop or the supervisor is."""


def retry_while_unavailable(
    call: Callable[[], Value],
    check: Callable[[], None] = lambda: None,
    stopping: threading.Event | None = None,
) -> Value:
    """Return what `call` returns, repeating it with growing pauses while it raises Unavailable.

    `check` runs before each repetition; what it raises ends the retries. Raises JobInterrupted once
    `stopping` is set.
    """
    stopping = stopping or threading.Event()
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Unavailable as error:
            logger.warning("trying again in %.1f s: %s", pause_s, error)
        if stopping.wait(pause_s):
            raise JobInterrupted
        check()
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
