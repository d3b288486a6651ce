"""Doing something again while Redis or the storage is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from jobs.errors import Unavailable

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0


def retry_while_unavailable(call: Callable[[], Value], may_go_on: Callable[[], None] = lambda: None) -> Value:
    """What `call` returns once it no longer raises Unavailable.

    `may_go_on` is asked before it is tried again; what it raises ends this.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Unavailable as error:
            logger.warning("trying again in %.1f s: %s", pause_s, error)
        time.sleep(pause_s)
        may_go_on()
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
