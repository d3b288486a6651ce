"""The cost of a call does not depend on the number of queued and running jobs, of owners and of groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from redis import Redis

from jobs.record import Progress
from jobs.registration import GroupRegistration
from jobs.store import scripts
from jobs.store.holder import Lease
from jobs.store.queue_depths import queue_depths
from jobs.store.quotas import Quotas
from tests.jobs.examples import LEASE_S, ORDER, ExampleStore, a_submission
from tests.orders import make_order

ELEMENTS = "test:elements"
COUNTING = f"""
local server = redis
local function counting(call)
  return function(...)
    local reply = call(...)
    if type(reply) == 'table' and #reply > 0 then server.call('INCRBY', '{ELEMENTS}', #reply) end
    return reply
  end
end
local counted = {{call = counting(redis.call), pcall = counting(redis.pcall)}}
local redis = setmetatable(counted, {{__index = redis}})
"""
"""Lua that counts the elements of all replies that a script reads."""

GROWTH = 1.5
ALLOWANCE = 10
"""Commands and elements that do not count as growth: a call takes some more when a list becomes empty."""


@dataclass(frozen=True)
class Load:
    """The state of a store: numbers of running and queued jobs, owners and groups."""

    running: int
    queued: int
    owners: int
    groups: int


SMALL = Load(running=10, queued=100, owners=10, groups=10)
LARGE = Load(running=100, queued=1000, owners=100, groups=100)


@dataclass(frozen=True)
class Cost:
    """Redis commands of a call, and elements that its scripts read."""

    commands: int
    elements: int


@pytest.fixture(autouse=True)
def _count_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    original = scripts.source
    monkeypatch.setattr(scripts, "source", lambda name: COUNTING + original(name))


def cost(redis: Redis, call: Callable[[], object]) -> Cost:
    """Return the cost of a call. Counting itself does not count."""
    redis.delete(ELEMENTS)
    redis.config_resetstat()
    call()
    stats = redis.info("commandstats")
    commands = sum(
        stat["calls"]
        for name, stat in stats.items()
        if name not in {"cmdstat_incrby", "cmdstat_config|resetstat"}
    )
    return Cost(commands, int(redis.get(ELEMENTS) or 0))


def loaded(redis: Redis, load: Load, quotas: Quotas = Quotas()) -> tuple[ExampleStore, list[Lease]]:  # noqa: B008
    """Return a store under this load, and its claims.

    Every tenth job is distilled. Running jobs are of low priority.
    """
    redis.flushall()
    redis.hset("longcat:gpu_time", mapping={"work_units": 1e9, "gpu_ms": 1e4})
    store = ExampleStore(redis, quotas=quotas)
    distilled = make_order(ORDER, distilled=True)
    claims = []
    for number in range(load.running + load.queued):
        runs = number < load.running
        store.submit(
            id=f"job-{number}",
            owner=f"owner-{number % load.owners}",
            order=distilled if number % 10 == 0 else ORDER,
            priority="low" if runs or number % 5 == 0 else "high",
        )
        if runs:
            claims.append(store.claim(f"group-{number}"))
    for number in range(load.groups):
        GroupRegistration(redis, f"group-{number}", ttl_s=600).heartbeat(
            "busy" if number < load.running else "ready",
            1,
            f"job-{number}" if number < load.running else None,
        )
    store.maintenance.sweep()
    for _ in range(load.queued // 1000 + 1):  # each looks at some of what is new
        store.maintenance.num_tickets_needed()
    store.clock.advance(20)
    return store, claims


def costs(redis: Redis, load: Load) -> dict[str, Cost]:
    """Return the cost of each call under a load. Each was made once before, so its script is loaded."""
    store, claims = loaded(redis, load)
    last = load.running + load.queued - 1
    calls: dict[str, Callable[[int], object]] = {
        "submit": lambda turn: store.submit(id=f"new-{turn}", owner=f"owner-{turn}"),
        "predict": lambda _: store.client.predict(a_submission(owner="owner-1", deadline_s=600)),
        "renew and preempt": lambda turn: store.holder.renew_lease(
            claims[turn], Progress(phase="denoise", step=turn), 10
        ),
        "poll": lambda _: (store.client.get(f"job-{last}"), store.client.estimate(f"job-{last}")),
        "page": lambda _: store.client.list_jobs(limit=20),
        "cancel": lambda turn: store.client.cancel(f"job-{last - 2 - turn}"),
        "finish": lambda turn: store.holder.confirm_cancel(claims[turn]),
        "requeue": lambda turn: store.holder.requeue(claims[turn + 2], crashed=False),
        "claim": lambda _: store.claim(),
        "sweep": lambda _: store.maintenance.sweep(),
        "count tickets": lambda _: store.maintenance.num_tickets_needed(),
    }
    found = {}
    for name, call in calls.items():
        call(0)
        found[name] = cost(redis, lambda call=call: call(1))  # type: ignore[misc]
    return found


def test_costs_do_not_grow_with_jobs_owners_and_groups(redis: Redis):
    small, large = costs(redis, SMALL), costs(redis, LARGE)
    grown = {
        name: (small[name], large[name])
        for name in small
        if large[name].commands > GROWTH * small[name].commands + ALLOWANCE
        or large[name].elements > GROWTH * small[name].elements + ALLOWANCE
    }
    assert grown == {}


def test_cost_of_a_scrape_does_not_grow_with_queued_jobs_and_owners(redis: Redis):
    found = []
    for num_owners in (60, 240):
        quotas = Quotas(owner_running_jobs=1)
        store, _ = loaded(redis, Load(10, 10 * num_owners, num_owners, groups=1), quotas)
        queue_depths(redis, store.clock)
        found.append(cost(redis, lambda store=store: queue_depths(redis, store.clock)))  # type: ignore[misc]
    small, large = found
    assert large.commands <= small.commands + ALLOWANCE
    assert large.elements <= small.elements + ALLOWANCE


def test_claim_passes_over_each_owner_at_the_limit_only_once(redis: Redis):
    store, _ = loaded(redis, Load(running=50, queued=450, owners=50, groups=1), Quotas(owner_running_jobs=1))
    assert store.holder.claim("a", LEASE_S) is None
    assert cost(redis, lambda: store.holder.claim("a", LEASE_S)).commands < 30


@pytest.mark.parametrize("polled", ["low-0", "low-last", "high-last"])
def test_cost_of_a_position_that_depends_on_ageing_does_not_grow_with_the_queue(redis: Redis, polled: str):
    found = []
    for num_jobs in (200, 600):
        redis.flushall()
        store = ExampleStore(redis)
        for number in range(num_jobs):
            store.submit(id=f"low-{number}", priority="low", ageing_s=50.0)
            store.submit(id=f"high-{number}", priority="high", owner="ab"[number % 2], ageing_s=50.0)
            store.clock.advance(200.0 / num_jobs)
        job_id = polled.replace("last", str(num_jobs - 1))
        store.estimate(job_id)
        found.append(cost(redis, lambda store=store, job_id=job_id: store.estimate(job_id)))  # type: ignore[misc]
    small, large = found
    assert large.commands <= small.commands + ALLOWANCE
    assert large.elements <= small.elements + ALLOWANCE


def test_cost_of_a_sweep_does_not_grow_with_late_jobs(redis: Redis):
    found = []
    for num_late in (120, 600):  # the claim moves fifty, and so does the sweep
        redis.flushall()
        store = ExampleStore(redis)
        for number in range(num_late):
            store.submit(owner=f"owner-{number // 10}", deadline_s=60)
        store.maintenance.sweep()
        store.clock.advance(1)
        store.maintenance.sweep()
        store.clock.advance(60)
        store.holder.claim("a", LEASE_S)
        found.append(cost(redis, store.maintenance.sweep))
    small, large = found
    assert large.commands <= GROWTH * small.commands + ALLOWANCE
    assert large.elements <= GROWTH * small.elements + ALLOWANCE
