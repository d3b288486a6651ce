"""Owners share the groups by the work of their jobs, in proportion to their weights, and nobody starves."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import pytest
from redis import Redis

from jobs.store.holder import Lease
from jobs.store.quotas import Quotas
from jobs.work import work_units
from tests.jobs.examples import LEASE_S, ORDER, ExampleStore
from tests.orders import make_order

CLIP = make_order(ORDER, distilled=True, num_inference_steps=16, guidance_scale=1.0)
LONG = make_order(ORDER, num_segments=60)
NUM_JOBS_IN_WINDOW = 30
LIMITS = Quotas(owner_running_jobs=1)


@dataclass(frozen=True)
class Served:
    """A claimed job: its owner and its work units."""

    owner: str
    work: int


def serve(store: ExampleStore, count: int) -> list[Served]:
    """Claim jobs one after the other, and end each at once."""
    served: list[Served] = []
    while len(served) < count and (lease := store.holder.claim("a", LEASE_S)):
        served.append(Served(lease.job.owner, work_units(lease.job.order.plan)))
        store.holder.confirm_cancel(lease)
    return served


def test_many_clips_start_for_each_long_order(store: ExampleStore):
    for _ in range(10):
        store.submit(owner="films", order=LONG)
        store.submit(owner="clips", order=CLIP)
    assert "".join(job.owner[0] for job in serve(store, 12)) == "f" + "c" * 10 + "f"


@pytest.mark.parametrize("seed", range(4))
def test_backlogged_owners_are_served_in_proportion_to_their_weights(store: ExampleStore, seed: int):
    chosen = random.Random(seed)
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    sizes = {"a": [10], "b": [5, 10, 15], "c": [8, 20]}
    work = {steps: work_units(make_order(ORDER, num_inference_steps=steps).plan) for steps in range(1, 51)}
    for _ in range(250):
        for owner, weight in weights.items():
            order = make_order(ORDER, num_inference_steps=chosen.choice(sizes[owner]))
            store.submit(owner=owner, order=order, weight=weight)
    served = serve(store, 300)
    longest = work[20]
    totals = {
        owner: list(accumulate((job.work if job.owner == owner else 0 for job in served), initial=0))
        for owner in weights
    }
    for start in range(len(served) - NUM_JOBS_IN_WINDOW):
        window = {owner: sums[start + NUM_JOBS_IN_WINDOW] - sums[start] for owner, sums in totals.items()}
        shares = {owner: window[owner] / weights[owner] for owner in weights}
        # Within a window, each owner may be one of their jobs ahead, and one behind.
        allowance = {owner: longest / weights[owner] for owner in weights}
        for one in weights:
            for other in weights:
                assert shares[one] - shares[other] <= allowance[one] + allowance[other]
    whole = {owner: sums[-1] / weights[owner] for owner, sums in totals.items()}
    assert max(whole.values()) <= 1.1 * min(whole.values())


def test_jobs_held_back_by_a_limit_start_when_a_job_stops_in_any_way(redis: Redis, store: ExampleStore):
    store = ExampleStore(redis, quotas=LIMITS)
    for _ in range(4):
        store.submit(owner="a")
    held = deque([store.claim()])
    ends: list[Callable[[Lease], object]]
    ends = [
        lambda lease: store.holder.requeue(lease, crashed=False),
        store.holder.begin_upload,
        store.holder.confirm_cancel,
    ]
    for end in ends:
        assert store.holder.claim("a", LEASE_S) is None
        end(held.popleft())
        held.append(store.claim())
    store.lose_lease()
    assert store.holder.claim("a", LEASE_S) is not None
