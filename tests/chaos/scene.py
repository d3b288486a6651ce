"""Define faults, and what they need: the site, a busy worker, and whether a job has resumed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from jobs.record import ENDED
from jobs.registration import live_groups
from tests.chaos.client import Client
from tests.chaos.daemons import Worker
from tests.chaos.site import MAX_ATTEMPTS, Site, now


@dataclass
class Scene:
    """The tools of a fault. The last three are functions of the campaign that return the id of a job."""

    site: Site
    client: Client
    rng: random.Random
    order_poison: Callable[[], str | None]
    order_urgent: Callable[[], str | None]
    cancel_one: Callable[[], str | None]


@dataclass
class ActiveFault:
    """A fault that was caused.

    Attributes:
        job: the job that it affects, None for an outage that affects all.
        recovered: returns the time at which the work resumed, None before.
        lasts_s: the time until `repair` is called.
        from_repair: whether the recovery counts from the repair instead of from the beginning.
        at: when it began.
    """

    job: str | None
    recovered: Callable[[], float | None]
    lasts_s: float = 0.0
    repair: Callable[[], None] = lambda: None
    from_repair: bool = False
    at: float = 0.0


Fault = Callable[[Scene], ActiveFault | None]


def busy(scene: Scene) -> tuple[Worker, str] | None:
    """Return a worker and its running job, which must have attempts left."""
    jobs = {status.group: status.job for status in live_groups(scene.site.redis) if status.job}
    for worker in scene.rng.sample(scene.site.workers, len(scene.site.workers)):
        if not worker.runs or len(worker.ranks) != worker.num_ranks:
            continue
        for job_id in filter(None, map(jobs.get, worker.groups)):
            job = scene.site.job_store.client.get(job_id)
            may_crash = job.status == "running" and job.attempt < MAX_ATTEMPTS
            if may_crash and job.priority != "low":  # other jobs may start before one of low priority resumes
                return worker, job_id
    return None


def ended(scene: Scene, job_id: str) -> float | None:
    """Return the present time if this job has ended, else None."""
    return now() if scene.site.job_store.client.get(job_id).status in ENDED else None


def resumes_elsewhere(scene: Scene, worker: Worker) -> Callable[[str], Callable[[], float | None]]:
    """Return a function that returns when a job resumed under a new rank, or ended."""
    at, before, steps = now(), {rank.pid for rank in worker.ranks}, scene.site.steps
    return lambda job_id: lambda: steps.running_again(job_id, at, before) or ended(scene, job_id)
