"""The faults: each is a function that strikes a site once, somewhere, and says when that is over.

A blow lasts for a while, then it is mended (what ended is started again, what is ill gets well), and then
it is waited for that the work goes on. `tests.chaos.campaign` draws them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from jobs.registration import live_groups
from tests.chaos.daemons import Worker
from tests.chaos.outages import fill_disk, kill_api, kill_api_in_order, kill_redis, make_s3
from tests.chaos.scene import Blow, Fault, Scene, busy, ended, goes_on_elsewhere
from tests.chaos.site import LEASE_S, MAX_ATTEMPTS, Site, now
from tests.waiting import wait_until

PICKED_UP_S = 10.0


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
        "no disk space for the video": lambda scene: _stage(scene, "disk", goes_on=False),
        "redis killed": kill_redis,
        "api killed": kill_api,
        "api killed in an order": kill_api_in_order,
        "s3 down": lambda scene: make_s3(scene, "down"),
        "s3 failing": lambda scene: make_s3(scene, "failing"),
        "s3 slow": lambda scene: make_s3(scene, "slow"),
        "s3 cutting connections": lambda scene: make_s3(scene, "cutting"),
        "job cancelled": _cancel,
        "poison job": _poison,
        "urgent job": _urgent,
    }
    if all(worker.mounted for worker in site.workers):
        found["disk full"] = fill_disk
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
    "no disk space for the video": "disk_full",
    "disk full": "disk_full",
}


def _strike_process(scene: Scene, choose: Callable[[Worker], psutil.Process | None], how: str) -> Blow | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = goes_on_elsewhere(scene, worker)(job_id)
    with suppress(psutil.NoSuchProcess, IndexError):
        if process := choose(worker):
            getattr(process, how)()
            return Blow(job_id, recovered)
    return None


def _kill_group(scene: Scene) -> Blow | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = goes_on_elsewhere(scene, worker)(job_id)
    with suppress(psutil.NoSuchProcess):
        for process in (worker.torchrun, *worker.ranks):
            if process:
                process.kill()
    return Blow(job_id, recovered)


def _pause_supervisor(scene: Scene) -> Blow | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    supervisor = worker.supervisor
    assert supervisor is not None
    recovered = goes_on_elsewhere(scene, worker)(job_id)
    supervisor.suspend()

    def resume() -> None:
        with suppress(psutil.NoSuchProcess):
            supervisor.resume()

    return Blow(job_id, recovered, lasts_s=LEASE_S + scene.rng.uniform(1, 4), mend=resume)


def _lose_machine(scene: Scene) -> Blow | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = goes_on_elsewhere(scene, worker)(job_id)
    worker.lose_machine()
    return Blow(job_id, recovered, lasts_s=scene.rng.uniform(0, 3), mend=worker.start)


def _drain(scene: Scene) -> Blow | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = goes_on_elsewhere(scene, worker)(job_id)
    worker.signal(signal.SIGTERM)
    status = worker.wait(120)
    assert status == 0, f"a drained worker ended with {status}"
    return Blow(job_id, recovered, mend=worker.start)


def _stage(scene: Scene, what: str, *, goes_on: bool) -> Blow | None:
    if (found := busy(scene)) is None:
        return None
    worker, _ = found
    recovered_of = goes_on_elsewhere(scene, worker)
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
    return Blow(job_id, recovered_of(job_id) if goes_on else lambda: ended(scene, job_id))


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f"part-{path.name}")
    part.write_text(text)
    part.rename(path)


def _cancel(scene: Scene) -> Blow | None:
    job_id = scene.cancel_one()
    return Blow(job_id, lambda: ended(scene, job_id)) if job_id else None


def _poison(scene: Scene) -> Blow | None:
    job_id = scene.order_poison()
    return Blow(job_id, lambda: ended(scene, job_id)) if job_id else None


def _urgent(scene: Scene) -> Blow | None:
    """A low job makes way, unless a group gets free before."""
    at_work = [status.job for status in live_groups(scene.site.redis) if status.job]
    if not any(scene.site.job_store.client.get(job_id).priority == "low" for job_id in at_work):
        return None
    job_id = scene.order_urgent()
    return Blow(job_id, lambda: _begun(scene, job_id)) if job_id else None


def _begun(scene: Scene, job_id: str) -> float | None:
    return now() if scene.site.job_store.client.get(job_id).status != "queued" else None
