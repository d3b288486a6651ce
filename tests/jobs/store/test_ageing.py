"""Jobs of low priority start although there are always jobs of higher priority."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from tests.jobs.examples import ExampleStore

AGEING_S = 600.0
STEP_S = 60.0


@pytest.fixture
def store(redis: Redis) -> ExampleStore:
    return ExampleStore(redis)


def priorities_served(store: ExampleStore, num_steps: int, **options: Any) -> list[str]:
    """Return the priorities in which jobs start while, at each step, one is submitted and one starts."""
    served: list[str] = []
    for number in range(num_steps):
        store.submit(priority="high", owner=f"owner-{number % 3}", **options)
        store.clock.advance(STEP_S)
        claim = store.claim()
        served.append(claim.job.priority)
        store.holder.confirm_cancel(claim)
    return served


def test_steady_high_priority_traffic_does_not_starve_other_priorities(store: ExampleStore):
    for priority in ("low", "normal"):
        store.submit(priority=priority, owner="patient", ageing_s=AGEING_S)
    served = priorities_served(store, 25, ageing_s=AGEING_S)
    steps_to_age = round(AGEING_S / STEP_S)
    # Before the first one start the jobs submitted until it had aged, the last of them at that time.
    assert served.index("normal") == steps_to_age + 1
    assert served.index("low") == 2 * steps_to_age + 2
    assert served.count("high") == len(served) - 2


def test_priority_is_strict_without_ageing(store: ExampleStore):
    store.submit(priority="low")
    assert priorities_served(store, 25) == ["high"] * 25


def test_preempted_job_waits_again_before_it_passes_the_job_it_made_room_for(store: ExampleStore):
    low = store.start(priority="low", ageing_s=AGEING_S)
    store.clock.advance(10)
    high = store.submit(priority="high", ageing_s=AGEING_S)
    for _ in range(300):
        store.clock.advance(20)
        store.holder.renew_lease(low)
    store.holder.requeue(low, crashed=False)
    assert store.claim().job.id == high.id
