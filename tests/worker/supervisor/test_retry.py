from __future__ import annotations

import pytest

from jobs.errors import DiskFull, LeaseLost, Unavailable
from worker.supervisor import retry as patience
from worker.supervisor.retry import retry_while_unavailable


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that were made, without waiting for them."""
    made: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", made.append)
    return made


def failing(times: int, error: Exception):
    """Fails so often, then gives 7."""
    left = [times]

    def call() -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return 7

    return call


def test_what_works_at_once_is_not_waited_for(pauses):
    assert retry_while_unavailable(failing(0, Unavailable(""))) == 7
    assert pauses == []


def test_it_is_tried_until_it_works_with_longer_pauses(pauses):
    assert retry_while_unavailable(failing(9, Unavailable("away"))) == 7
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1], len(pauses)) == (patience.FIRST_PAUSE_S, patience.LONGEST_PAUSE_S, 9)


def test_another_error_ends_it(pauses):
    with pytest.raises(DiskFull):
        retry_while_unavailable(failing(1, DiskFull("")))
    assert pauses == []


def test_who_may_not_go_on_does_not_try_again(pauses):
    def lost() -> None:
        raise LeaseLost("")

    with pytest.raises(LeaseLost):
        retry_while_unavailable(failing(1, Unavailable("")), lost)
    assert len(pauses) == 1


def test_the_first_try_is_made_without_asking(pauses):
    def lost() -> None:
        raise LeaseLost("")

    assert retry_while_unavailable(failing(0, Unavailable("")), lost) == 7
