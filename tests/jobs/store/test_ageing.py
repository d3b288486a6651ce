"""Jobs of low priority start although there are always jobs of higher priority."""

from __future__ import annotations

import random
from typing import Any

import pytest
from redis import Redis

from jobs.order import PRIORITIES
from jobs.store.listing import JobFilter
from tests.jobs.examples import ExampleStore, a_submission

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


@pytest.mark.parametrize("seed", range(6))
def test_positions_predict_the_order_of_claims(store: ExampleStore, seed: int):
    chosen = random.Random(seed)
    for _ in range(60):
        store.submit(
            priority=chosen.choice(["high", "normal", "low"]),
            owner=chosen.choice("abc"),
            ageing_s=chosen.choice([AGEING_S, AGEING_S / 2]),
            deadline_s=chosen.choice([None, None, 3000]),
        )
        store.clock.advance(chosen.choice([0, 20, 200]))
        if chosen.random() < 0.2:
            lease = store.claim()
            if lease.job.priority == "high" and chosen.random() < 0.3:
                store.holder.requeue(lease, crashed=False)
            else:
                store.holder.confirm_cancel(lease)
    store.maintenance.sweep()
    queued = store.client.page(JobFilter(("queued",)), 100).jobs
    expected = sorted(queued, key=lambda job: store.position(job.id))
    assert [store.position(job.id) for job in expected] == list(range(1, len(queued) + 1))
    by_priority = [PRIORITIES.index(job.priority) for job in expected]
    assert by_priority != sorted(by_priority)
    assert [store.claim().job.id for _ in expected] == [job.id for job in expected]


def test_position_of_a_new_job_counts_aged_jobs_of_lower_priority(store: ExampleStore):
    for _ in range(3):
        store.submit(priority="low", ageing_s=AGEING_S)
    store.clock.advance(2 * AGEING_S + 1)
    store.submit(priority="low", ageing_s=AGEING_S)
    new = a_submission(priority="high", ageing_s=AGEING_S)
    predicted = store.client.predict(new).position
    store.client.submit(new)
    assert predicted == store.position(new.id) == 4


def test_positions_are_right_in_long_queues_in_the_order_of_submission(store: ExampleStore):
    """More than a hundred jobs are before the place in question, so not all of them are read."""
    low = []
    for number in range(240):
        store.submit(priority="high", owner="ab"[number % 2], ageing_s=AGEING_S)
        low.append(store.submit(priority="low", ageing_s=AGEING_S).id)
        store.clock.advance(2 * AGEING_S / 120)
    assert [store.position(low[number]) for number in (0, 60, 130, 239)] == [122, 242, 371, 480]
