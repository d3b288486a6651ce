"""What faults stand on: the site, who is at work on it, and how to tell that the work goes on."""

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
    """What a fault may use; the last three are the campaign's, and give a job."""

    site: Site
    client: Client
    rng: random.Random
    order_poison: Callable[[], str | None]
    order_urgent: Callable[[], str | None]
    cancel_one: Callable[[], str | None]


@dataclass
class Blow:
    """A fault that was struck. `recovered` gives the time at which the work went on, None before.

    `mend` is called when it has lasted so long. Of an outage, `from_mend`, only what comes after that counts.
    """

    job: str | None
    recovered: Callable[[], float | None]
    lasts_s: float = 0.0
    mend: Callable[[], None] = lambda: None
    from_mend: bool = False
    at: float = 0.0


Fault = Callable[[Scene], Blow | None]


def busy(scene: Scene) -> tuple[Worker, str] | None:
    """A worker with a job that may still crash once more."""
    jobs = {status.group: status.job for status in live_groups(scene.site.redis) if status.job}
    for worker in scene.rng.sample(scene.site.workers, len(scene.site.workers)):
        job_id = jobs.get(worker.group)
        if job_id and worker.runs and len(worker.ranks) == 2:
            job = scene.site.job_store.client.get(job_id)
            may_crash = job.status == "running" and job.attempt < MAX_ATTEMPTS
            if may_crash and job.priority != "low":  # which others pass, however soon it could go on
                return worker, job_id
    return None


def ended(scene: Scene, job_id: str) -> float | None:
    """Now, if this job has ended."""
    return now() if scene.site.job_store.client.get(job_id).status in ENDED else None


def goes_on_elsewhere(scene: Scene, worker: Worker) -> Callable[[str], Callable[[], float | None]]:
    """For a job, asked for before it is struck: when another leader than this worker's had it, or its end."""
    at, leader = now(), scene.site.steps.leader(worker.group)
    before = {leader} if leader else set()
    steps = scene.site.steps
    return lambda job_id: lambda: steps.running_again(job_id, at, before) or ended(scene, job_id)
