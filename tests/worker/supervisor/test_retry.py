from __future__ import annotations

import threading

import pytest

from jobs.errors import DiskFull, LeaseLost, Unavailable
from worker.supervisor.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, JobInterrupted, retry_while_unavailable


class RecordedPauses(threading.Event):
    """Record pauses instead of making them."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout=None) -> bool:
        self.pauses.append(timeout)
        return self.is_set()


@pytest.fixture
def stopping() -> RecordedPauses:
    return RecordedPauses()


def nothing() -> None:
    """Allow every repetition."""


def failing(times: int, error: Exception):
    """Raise the error so many times, then return 7."""
    left = [times]

    def call() -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return 7

    return call


def test_call_that_succeeds_is_not_repeated(stopping):
    assert retry_while_unavailable(failing(0, Unavailable("")), nothing, stopping) == 7
    assert stopping.pauses == []


def test_call_is_repeated_with_growing_pauses(stopping):
    assert retry_while_unavailable(failing(9, Unavailable("away")), nothing, stopping) == 7
    pauses = stopping.pauses
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1], len(pauses)) == (FIRST_PAUSE_S, LONGEST_PAUSE_S, 9)


def test_other_errors_are_not_retried(stopping):
    with pytest.raises(DiskFull):
        retry_while_unavailable(failing(1, DiskFull("")), nothing, stopping)
    assert stopping.pauses == []


def lease_lost() -> None:
    raise LeaseLost("")


def test_check_that_raises_ends_the_retries(stopping):
    with pytest.raises(LeaseLost):
        retry_while_unavailable(failing(1, Unavailable("")), lease_lost, stopping)
    assert len(stopping.pauses) == 1


def test_check_does_not_run_before_the_first_call(stopping):
    assert retry_while_unavailable(failing(0, Unavailable("")), lease_lost, stopping) == 7


def test_stopping_interrupts_the_retries():
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(JobInterrupted):
        retry_while_unavailable(failing(1, Unavailable("")), nothing, stopping)


def test_stopping_allows_the_first_call():
    stopping = threading.Event()
    stopping.set()
    assert retry_while_unavailable(failing(0, Unavailable("")), nothing, stopping) == 7
