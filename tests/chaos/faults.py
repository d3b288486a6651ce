"""The faults: each is a function that strikes a site once, somewhere, and says when that is over.

A blow lasts for a while, then it is mended (what ended is started again, what is ill gets well), and then
it is waited for that the work goes on. `tests.chaos.campaign` draws them.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.capability import groups
from jobs.record import ENDED
from tests.chaos.client import Client
from tests.chaos.s3_proxy import Health
from tests.chaos.site import LEASE_S, MAX_ATTEMPTS, Daemon, Site, Worker, now
from tests.waiting import wait_until

BALLAST = bytes(1 << 20)
PICKED_UP_S = 10.0


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


def faults(site: Site) -> Mapping[str, Fault]:
    """Every kind that can be struck here, by name; they answer None where there is nothing to be struck."""
    found = {
        "rank 0 killed": lambda scene: _strike_process(scene, lambda worker: worker.ranks[0], "kill"),
        "rank 1 killed": lambda scene: _strike_process(scene, lambda worker: worker.ranks[1], "kill"),
        "rank stopped": lambda scene: _strike_process(
            scene, lambda worker: scene.rng.choice(worker.ranks), "suspend"
        ),
        "torchrun killed with its ranks": _kill_group,
        "supervisor killed": lambda scene: _strike_process(scene, lambda worker: worker.supervisor, "kill"),
        "supervisor stopped beyond its lease": _pause_supervisor,
        "machine lost": _lose_machine,
        "worker drained": _drain,
        "error on one rank": lambda scene: _stage(scene, f"raises {scene.rng.randrange(2)}", goes_on=True),
        "out of memory on all ranks": lambda scene: _stage(scene, "memory", goes_on=False),
        "no room for the film": lambda scene: _stage(scene, "disk", goes_on=False),
        "redis killed": _kill_redis,
        "api killed": _kill_api,
        "s3 down": lambda scene: _make_s3(scene, "down"),
        "s3 failing": lambda scene: _make_s3(scene, "failing"),
        "s3 slow": lambda scene: _make_s3(scene, "slow"),
        "s3 cutting connections": lambda scene: _make_s3(scene, "cutting"),
        "job cancelled": _cancel,
        "poison job": _poison,
        "urgent job": _urgent,
    }
    if all(worker.mounted for worker in site.workers):
        found["disk full"] = _fill_disk
    return found


CRASHES = {  # attempts that a fault of this kind may cost a job
    **dict.fromkeys(
        [
            "rank 0 killed",
            "rank 1 killed",
            "rank stopped",
            "torchrun killed with its ranks",
            "supervisor killed",
            "supervisor stopped beyond its lease",
            "machine lost",
            "error on one rank",
            "disk full",
        ],
        1,
    ),
    "poison job": MAX_ATTEMPTS,
}
EXCUSES = {  # how a job may fail that was struck so
    "out of memory on all ranks": "out_of_memory",
    "no room for the film": "disk_full",
    "disk full": "disk_full",
}


def _busy(scene: Scene) -> tuple[Worker, str] | None:
    """A worker with a job that may still crash once more."""
    jobs = {status.group: status.job for status in groups(scene.site.redis) if status.job}
    for worker in scene.rng.sample(scene.site.workers, len(scene.site.workers)):
        job_id = jobs.get(worker.group)
        if job_id and worker.runs and len(worker.ranks) == 2:
            job = scene.site.ledger.get(job_id)
            may_crash = job.status == "running" and job.attempt < MAX_ATTEMPTS
            if may_crash and job.priority != "low":  # which others pass, however soon it could go on
                return worker, job_id
    return None


def _runs_again(scene: Scene, worker: Worker, job_id: str) -> Callable[[], float | None]:
    return _of_any_job(scene, worker)(job_id)


def _ended(scene: Scene, job_id: str) -> float | None:
    return now() if scene.site.ledger.get(job_id).status in ENDED else None


def _strike_process(scene: Scene, choose: Callable[[Worker], psutil.Process | None], how: str) -> Blow | None:
    if (found := _busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = _runs_again(scene, worker, job_id)
    with suppress(psutil.NoSuchProcess, IndexError):
        if process := choose(worker):
            getattr(process, how)()
            return Blow(job_id, recovered)
    return None


def _kill_group(scene: Scene) -> Blow | None:
    if (found := _busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = _runs_again(scene, worker, job_id)
    with suppress(psutil.NoSuchProcess):
        for process in (worker.torchrun, *worker.ranks):
            if process:
                process.kill()
    return Blow(job_id, recovered)


def _pause_supervisor(scene: Scene) -> Blow | None:
    if (found := _busy(scene)) is None:
        return None
    worker, job_id = found
    supervisor = worker.supervisor
    assert supervisor is not None
    recovered = _runs_again(scene, worker, job_id)
    supervisor.suspend()

    def resume() -> None:
        with suppress(psutil.NoSuchProcess):
            supervisor.resume()

    return Blow(job_id, recovered, lasts_s=LEASE_S + scene.rng.uniform(1, 4), mend=resume)


def _lose_machine(scene: Scene) -> Blow | None:
    if (found := _busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = _runs_again(scene, worker, job_id)
    worker.lose_machine()
    return Blow(job_id, recovered, lasts_s=scene.rng.uniform(0, 3), mend=worker.start)


def _drain(scene: Scene) -> Blow | None:
    if (found := _busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = _runs_again(scene, worker, job_id)
    worker.signal(signal.SIGTERM)
    status = worker.wait(120)
    assert status == 0, f"a drained worker ended with {status}"
    return Blow(job_id, recovered, mend=worker.start)


def _stage(scene: Scene, what: str, *, goes_on: bool) -> Blow | None:
    if (found := _busy(scene)) is None:
        return None
    worker, _ = found
    recovered_of = _of_any_job(scene, worker)
    fault = scene.site.checkpoint / f"fault-{worker.group}"
    _write_whole(fault, what)
    try:
        wait_until(lambda: not fault.exists(), PICKED_UP_S)
    except TimeoutError:
        fault.unlink(missing_ok=True)
        return None
    struck = next(scene.site.checkpoint.glob(f"{fault.name}.*"))
    job_id = struck.suffix[1:]
    struck.unlink()
    return Blow(job_id, recovered_of(job_id) if goes_on else lambda: _ended(scene, job_id))


def _of_any_job(scene: Scene, worker: Worker) -> Callable[[str], Callable[[], float | None]]:
    at, leader = now(), scene.site.steps.leader(worker.group)
    before = {leader} if leader else set()
    steps = scene.site.steps
    return lambda job_id: lambda: steps.running_again(job_id, at, before) or _ended(scene, job_id)


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f"part-{path.name}")
    part.write_text(text)
    part.rename(path)


def _kill_redis(scene: Scene) -> Blow:
    server = scene.site.redis_server
    server.kill()
    url = scene.rng.choice(list(scene.site.apis))
    return Blow(
        None,
        lambda: now() if scene.client.answers(url, "/readyz") else None,
        lasts_s=scene.rng.choice((0.0, 2.0, LEASE_S + 3)),
        mend=server.start,
        from_mend=True,
    )


def _kill_api(scene: Scene) -> Blow:
    url = scene.rng.choice(list(scene.site.apis))
    api: Daemon = scene.site.apis[url]
    api.signal(signal.SIGKILL)
    api.wait(10)
    return Blow(
        None,
        lambda: now() if scene.client.answers(url, "/readyz") else None,
        lasts_s=scene.rng.uniform(0, 2),
        mend=api.start,
        from_mend=True,
    )


def _make_s3(scene: Scene, health: Health) -> Blow:
    """It is over when something is stored again; while all is idle nothing is."""
    s3, at = scene.site.s3, [0.0]
    s3.health = health

    def mend() -> None:
        s3.health, at[0] = "well", now()

    def recovered() -> float | None:
        if s3.stored_at > at[0]:
            return s3.stored_at
        return now() if not any(status.job for status in groups(scene.site.redis)) else None

    return Blow(None, recovered, lasts_s=scene.rng.uniform(2, 6), mend=mend, from_mend=True)


def _fill_disk(scene: Scene) -> Blow | None:
    if (found := _busy(scene)) is None:
        return None
    worker, job_id = found
    ballast = worker.disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(BALLAST):
            pass
    return Blow(
        job_id,
        lambda: _ended(scene, job_id),
        lasts_s=scene.rng.uniform(1, 3),
        mend=lambda: ballast.unlink(missing_ok=True),
        from_mend=True,
    )


def _cancel(scene: Scene) -> Blow | None:
    job_id = scene.cancel_one()
    return Blow(job_id, lambda: _ended(scene, job_id)) if job_id else None


def _poison(scene: Scene) -> Blow | None:
    job_id = scene.order_poison()
    return Blow(job_id, lambda: _ended(scene, job_id)) if job_id else None


def _urgent(scene: Scene) -> Blow | None:
    """A low job makes way, unless a group gets free before."""
    at_work = [status.job for status in groups(scene.site.redis) if status.job]
    if not any(scene.site.ledger.get(job_id).priority == "low" for job_id in at_work):
        return None
    job_id = scene.order_urgent()
    return Blow(job_id, lambda: _begun(scene, job_id)) if job_id else None


def _begun(scene: Scene, job_id: str) -> float | None:
    return now() if scene.site.ledger.get(job_id).status != "queued" else None
