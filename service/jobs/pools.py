"""Choose the pools of groups that may run a request, and show pools to clients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Self, get_args

from pydantic import Field

from jobs.capability import Capability
from jobs.errors import InvalidRequest, NoSuitableGroup
from jobs.fleet import Fleet, Pool
from jobs.order import Order
from jobs.requirement import Requirement, can_run
from jobs.store.queue_depths import QueueDepth
from model.spec.params import Quality, Task
from model.spec.resolve import T_THRESH
from service.jobs.bodies import MAX_VIDEOS


def candidate_pools(
    fleet: Fleet, model: str | None, shares: Mapping[str, float], job_id: str
) -> Sequence[Pool]:
    """Return the pools that may run a request, in the order in which they are tried.

    Without a model, the pools of the models in `shares` are returned, those of the model that the job's id
    selects first; live pools come before others.

    Raises NoCapability, and InvalidRequest for an unknown model.
    """
    fleet.first()  # raises NoCapability
    models = {pool.capability.model for pool in fleet.pools}
    if model is not None:
        if model not in models:
            raise InvalidRequest(f"model: must be one of {', '.join(sorted(models))}", "model")
        return [pool for pool in fleet.pools if pool.capability.model == model]
    usable = {name: share for name, share in shares.items() if name in models}
    if not usable:
        return fleet.pools
    chosen = choose_model(usable, job_id)
    pools = [pool for pool in fleet.pools if pool.capability.model in usable]
    return sorted(pools, key=lambda pool: (not pool.is_live, pool.capability.model != chosen))


def choose_model(shares: Mapping[str, float], job_id: str) -> str:
    """Return one of the models, each for its share of all job ids. The same id gets the same model."""
    digest = hashlib.sha256(job_id.encode()).digest()
    rest = int.from_bytes(digest[:8]) / 2**64 * sum(shares.values())
    for model, share in sorted(shares.items()):
        rest -= share
        if rest < 0:
            return model
    return max(shares)  # only if rounding left a rest


def check_group_was_seen(fleet: Fleet, requirement: Requirement, longest_away_s: float) -> None:
    """Raise NoSuitableGroup unless a group that can run the job exists, or did within `longest_away_s`."""
    away_s = [pool.away_s for pool in fleet.pools if requirement.is_met_by(pool.capability)]
    if away_s and min(away_s) > longest_away_s:
        hours = min(away_s) / 3600
        raise NoSuitableGroup(f"groups that can run this request were last up {hours:.1f} hours ago")


def expected_weights(fleet: Fleet, order: Order, requirement: Requirement) -> dict[str, str] | None:
    """Return the fingerprints of the weights that will run an order, None if groups differ in them."""
    pools = fleet.live or fleet.pools
    found = [
        pool.capability.weights_for(order.plan) for pool in pools if requirement.is_met_by(pool.capability)
    ]
    return found[0] if found and found[0] and all(weights == found[0] for weights in found) else None


class PoolView(Capability):
    """A pool: groups with equal capabilities."""

    name: str
    num_groups: int = Field(description="Groups that are up: all but those that cannot start.")
    away_s: float = Field(
        description="Seconds since the last group went; 0 while there is one, even if it cannot start."
    )
    queued_jobs: int = Field(description="Queued jobs that the pool can run.")

    @classmethod
    def of_pool(cls, pool: Pool, depths: Iterable[QueueDepth]) -> Self:
        """Return the view of a pool, given the depths of the queue."""
        queued_jobs = sum(depth.num_jobs for depth in depths if can_run(pool.capability, depth.requirement))
        return cls(
            **dict(pool.capability),
            name=pool.name,
            num_groups=len(pool.groups_up),
            away_s=pool.away_s,
            queued_jobs=queued_jobs,
        )


class FleetView(Capability):
    """Show what can be requested: `tasks` and `loras` of all pools, all else of the first."""

    qualities: tuple[Quality, ...] = Field(("exact",), description="Qualities that may be requested.")
    default_t_thresh: float = Field(T_THRESH, description="Default of `t_thresh`.")
    max_num_videos: int = Field(MAX_VIDEOS, description="Largest `num_videos`.")
    pools: list[PoolView] = Field(description="Groups with equal capabilities; the most capable first.")

    @classmethod
    def of(cls, fleet: Fleet, depths: Sequence[QueueDepth], *, has_step_cache: bool) -> Self:
        """Return the view of a fleet. Raises NoCapability if no pool is known."""
        first = fleet.first()
        capabilities = [pool.capability for pool in fleet.live or fleet.pools]
        tasks = {task for capability in capabilities for task in capability.tasks}
        loras = {lora for capability in capabilities for lora in capability.loras}
        return cls(
            **dict(first.capability)
            | {
                "tasks": tuple(task for task in get_args(Task) if task in tasks),
                "loras": tuple(sorted(loras)),
            },
            qualities=get_args(Quality) if has_step_cache else ("exact",),
            pools=[PoolView.of_pool(pool, depths) for pool in fleet.pools],
        )
