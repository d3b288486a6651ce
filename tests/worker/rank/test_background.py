from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from worker.rank.background import NICENESS, BackgroundWriter


def close(background: BackgroundWriter, *, at_once: bool = False) -> Exception | None:
    """Close it and wait for its end; the error that it gives."""
    ended, errors = threading.Event(), []

    def then(error: Exception | None) -> None:
        errors.append(error)
        ended.set()

    background.close(then, at_once=at_once)
    assert ended.wait(30)
    return errors[0]


def raising(error: Exception) -> Callable[[], None]:
    def task() -> None:
        raise error

    return task


def test_tasks_are_done_in_order():
    background, done = BackgroundWriter(10), []
    for i in range(100):
        background.submit(lambda i=i: done.append(i), size_bytes=3)
    assert close(background) is None
    assert done == list(range(100))


def test_its_work_makes_way_for_that_of_other_threads():
    background, nice = BackgroundWriter(10), []
    background.submit(lambda: nice.append(os.nice(0)))
    assert close(background) is None
    assert nice == [min(os.nice(0) + NICENESS, 19)]


def test_submitting_waits_while_too_much_waits():
    background, gate, at = BackgroundWriter(10), threading.Event(), []
    background.submit(gate.wait)
    submitter = threading.Thread(target=lambda: [(background.submit(int, 4), at.append(i)) for i in range(4)])
    submitter.start()
    submitter.join(0.2)
    assert submitter.is_alive()
    assert len(at) <= 3  # one may have been taken, two wait
    gate.set()
    submitter.join(30)
    assert at == [0, 1, 2, 3]
    assert close(background) is None


def test_what_is_larger_than_the_limit_is_taken_when_nothing_else_waits():
    background, done = BackgroundWriter(10), []
    background.submit(lambda: done.append("large"), size_bytes=1000)
    assert close(background) is None
    assert done == ["large"]


def test_after_a_failure_nothing_more_is_done_and_the_error_is_told():
    background, done, failed = BackgroundWriter(10), [], OSError("full")
    background.submit(raising(failed))
    for _ in range(5):
        background.submit(lambda: done.append(1), size_bytes=8)
    assert close(background) is failed
    assert done == []


def test_the_error_is_raised_when_asked_for():
    background, failed = BackgroundWriter(10), OSError("full")
    background.check()
    background.submit(raising(failed))
    assert close(background) is failed
    with pytest.raises(OSError, match="full"):
        background.check()


def test_a_submitter_that_waits_is_let_go_by_a_failure():
    background, gate = BackgroundWriter(10), threading.Event()

    def fail_later() -> None:
        gate.wait()
        raise OSError

    background.submit(fail_later)
    submitter = threading.Thread(target=lambda: [background.submit(int, 8) for _ in range(3)])
    submitter.start()
    gate.set()
    submitter.join(30)
    assert not submitter.is_alive()
    assert isinstance(close(background), OSError)


def test_closed_at_once_it_drops_what_waits():
    background, gate, done = BackgroundWriter(100), threading.Event(), []
    begun = threading.Event()
    background.submit(lambda: (begun.set(), gate.wait(), done.append("first")))
    for _ in range(5):
        background.submit(lambda: done.append("later"))
    begun.wait()
    threading.Timer(0.1, gate.set).start()
    assert close(background, at_once=True) is None
    assert done == ["first"]
