from __future__ import annotations

import pytest

from worker.backoff import Backoff


@pytest.fixture
def backoff() -> Backoff:
    return Backoff(max_failures=3, longest_pause_s=60.0)


def after(backoff: Backoff, failures: int) -> Backoff:
    for _ in range(failures):
        backoff = backoff.after_failure()
    return backoff


def test_first_start_has_no_pause(backoff):
    assert backoff.pause_s == 0


def test_pause_doubles_with_each_failure_up_to_the_longest(backoff):
    pauses = [after(backoff, failures).pause_s for failures in range(1, 9)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_backoff_is_exhausted_after_max_failures(backoff):
    assert not after(backoff, 2).is_exhausted
    assert after(backoff, 3).is_exhausted


def test_exhausted_backoff_still_allows_starts(backoff):
    assert after(backoff, 1000).is_exhausted
    assert after(backoff, 1000).pause_s == 60


def test_success_resets_the_backoff(backoff):
    assert after(backoff, 5).after_success() == backoff
