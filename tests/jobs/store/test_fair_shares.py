"""Owners share the groups by the GPU time of their jobs, in proportion to their weights."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import pytest
from redis import Redis

from jobs.capability import Capability
from jobs.store.holder import Lease
from jobs.store.quotas import Quotas
from jobs.work import work_units
from tests.jobs.examples import LEASE_S, ORDER, ExampleStore, a_result
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


def run_for(store: ExampleStore, seconds: float, capability: Capability | None = None) -> None:
    """Claim the next job, let it run for some time, and let it succeed."""
    lease = store.holder.claim("a", LEASE_S, capability)
    assert lease is not None
    store.clock.advance(seconds)
    store.holder.begin_upload(lease)
    store.clock.advance(1000)  # an upload takes no GPU time
    store.holder.succeed(lease, a_result(lease), {})


def test_owners_share_the_gpu_time_that_their_jobs_took(store: ExampleStore):
    for _ in range(100):
        store.submit(owner="slow")
        store.submit(owner="quick")
    spent_s = {"slow": 0, "quick": 0}
    for _ in range(60):
        lease = store.claim()
        seconds = 30 if lease.job.owner == "slow" else 10
        spent_s[lease.job.owner] += seconds
        store.clock.advance(seconds)
        store.holder.succeed(lease, a_result(lease), {})
    assert abs(spent_s["slow"] - spent_s["quick"]) <= 60


def test_owner_does_not_pay_for_work_that_was_not_done(store: ExampleStore):
    store.submit(owner="other")
    run_for(store, 100)
    long, next_job = store.submit(owner="a", order=LONG), store.submit(owner="a")
    lease = store.claim()
    assert lease.job.id == long.id
    for _ in range(3):
        store.submit(owner="b")
    assert store.position(next_job.id) == 4
    store.clock.advance(1)
    store.client.cancel(long.id)
    store.holder.confirm_cancel(lease)
    assert store.position(next_job.id) == 2
    assert [store.claim().job.owner for _ in range(2)] == ["b", "a"]


def test_gpu_time_counts_all_gpus_of_a_group(redis: Redis, store: ExampleStore):
    capability = Capability(
        model="m",
        tasks=("text_to_video",),
        limits={},
        loras=("cfg_step_lora",),
        device="cpu",
        dtype="float32",
        context_parallel=4,
    )
    job = store.submit()
    run_for(store, 20, capability)
    assert redis.hget(f"longcat:job:{job.id}", "gpu_ms") == b"80000"


def test_gpu_time_of_all_attempts_counts(redis: Redis, store: ExampleStore):
    lease = store.start()
    store.clock.advance(5)
    store.holder.requeue(lease, crashed=True)
    store.clock.advance(100)
    run_for(store, 7)
    assert redis.hget(f"longcat:job:{lease.job.id}", "gpu_ms") == b"12000"
