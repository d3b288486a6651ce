from __future__ import annotations

import pytest

from worker.backoff import Backoff


@pytest.fixture
def breaker() -> Backoff:
    return Backoff(max_failures=3, longest_pause_s=60.0)


def after(breaker: Backoff, failures: int) -> Backoff:
    for _ in range(failures):
        breaker = breaker.after_failure()
    return breaker


def test_the_first_start_is_at_once(breaker):
    assert breaker.pause_s == 0


def test_each_failure_doubles_the_pause_up_to_the_longest(breaker):
    pauses = [after(breaker, failures).pause_s for failures in range(1, 9)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_it_opens_after_so_many_failures_and_not_before(breaker):
    assert not after(breaker, 2).is_open
    assert after(breaker, 3).is_open


def test_it_stays_open_and_tries_on(breaker):
    assert after(breaker, 1000).is_open
    assert after(breaker, 1000).pause_s == 60


def test_one_success_closes_it(breaker):
    assert after(breaker, 5).after_success() == breaker
