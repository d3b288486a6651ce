from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial

import pytest

from tests.waiting import wait_until
from worker.rank.background import NICENESS, THREAD_NAME, BackgroundWriter

TIMEOUT_S = 30.0


def background_writers() -> set[threading.Thread]:
    """Return the threads of all writers that have not ended, also of jobs that other tests broke off."""
    return {thread for thread in threading.enumerate() if thread.name == THREAD_NAME}


def finish(writer: BackgroundWriter) -> Exception | None:
    """Finish, and return the error that the thread passed on when it ended."""
    errors: list[Exception | None] = []
    writer.finish(errors.append)
    wait_until(lambda: errors)
    (error,) = errors
    return error


def nothing() -> None:
    """Do nothing."""


def raising(error: Exception) -> Callable[[], None]:
    def task() -> None:
        raise error

    return task


def test_tasks_run_in_order():
    writer = BackgroundWriter(10)
    done: list[int] = []
    for i in range(100):
        writer.submit(partial(done.append, i), size_bytes=3)
    assert finish(writer) is None
    assert done == list(range(100))


def test_tasks_run_with_lower_priority_than_other_threads():
    writer, niceness = BackgroundWriter(10), []
    writer.submit(lambda: niceness.append(os.nice(0)))
    assert finish(writer) is None
    assert niceness == [min(os.nice(0) + NICENESS, 19)]


def test_submit_blocks_while_too_many_bytes_wait():
    writer, running, gate, submitted = BackgroundWriter(10), threading.Event(), threading.Event(), []

    def wait() -> None:
        running.set()
        gate.wait()

    def submit_four() -> None:
        for i in range(4):
            writer.submit(nothing, 4)
            submitted.append(i)

    writer.submit(wait)
    running.wait()
    submitter = threading.Thread(target=submit_four)
    submitter.start()
    wait_until(lambda: len(submitted) == 2)
    submitter.join(0.2)
    assert submitted == [0, 1]
    gate.set()
    submitter.join(TIMEOUT_S)
    assert submitted == [0, 1, 2, 3]
    assert finish(writer) is None


def test_task_above_the_limit_is_accepted_when_no_other_waits():
    writer, done = BackgroundWriter(10), []
    writer.submit(lambda: done.append("large"), size_bytes=1000)
    assert finish(writer) is None
    assert done == ["large"]


def test_no_task_runs_after_one_has_failed():
    writer, done, error = BackgroundWriter(10), [], OSError("full")
    writer.submit(raising(error))
    for _ in range(5):
        writer.submit(lambda: done.append(1), size_bytes=8)
    assert finish(writer) is error
    assert done == []


def test_raise_if_failed_raises_the_exception_of_the_task():
    writer, error = BackgroundWriter(10), OSError("full")
    writer.raise_if_failed()
    writer.submit(raising(error))
    assert finish(writer) is error
    with pytest.raises(OSError, match="full"):
        writer.raise_if_failed()


def test_failed_task_releases_a_blocked_submit():
    writer, gate = BackgroundWriter(10), threading.Event()

    def fail_later() -> None:
        gate.wait()
        raise OSError

    writer.submit(fail_later)

    def submit_three() -> None:
        for _ in range(3):
            writer.submit(nothing, 8)

    submitter = threading.Thread(target=submit_three)
    submitter.start()
    gate.set()
    submitter.join(TIMEOUT_S)
    assert not submitter.is_alive()
    assert isinstance(finish(writer), OSError)


def test_abort_drops_waiting_tasks_and_completes_the_running_one():
    writer, running, gate = BackgroundWriter(100), threading.Event(), threading.Event()
    done: list[str] = []
    errors: list[Exception | None] = []

    def first() -> None:
        running.set()
        gate.wait()
        done.append("first")

    writer.submit(first)
    for _ in range(5):
        writer.submit(lambda: done.append("later"))
    running.wait()
    writer.abort(errors.append)
    gate.set()
    wait_until(lambda: errors)
    assert (done, errors) == (["first"], [None])


def test_thread_runs_until_it_is_finished():
    others = background_writers()
    writer = BackgroundWriter(10)
    assert background_writers() > others
    assert finish(writer) is None
    wait_until(lambda: background_writers() <= others)
