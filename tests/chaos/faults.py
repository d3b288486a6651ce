"""Cause faults. Each function causes one at a random place, and returns it with its end and its recovery.

A fault lasts for a while. Then it is repaired: dead processes are started again, and the S3 proxy works
again. Then the campaign waits until the work has recovered.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from jobs.registration import live_groups
from tests.chaos import redis_faults
from tests.chaos.daemons import Worker
from tests.chaos.outages import (
    fill_disk,
    fill_upload_disk,
    hang_receivers,
    kill_api,
    kill_api_in_order,
    kill_decoder,
    kill_uploading,
    make_s3,
    stop_api,
)
from tests.chaos.scene import ActiveFault, Fault, Scene, busy, ended, resumes_elsewhere
from tests.chaos.site import LEASE_S, MAX_ATTEMPTS, Site, now
from tests.waiting import wait_until

PICKED_UP_S = 10.0
LONGEST_CHANGE_S = 0.5  # from the message to stop to the first step with other ranks


def faults(site: Site) -> Mapping[str, Fault]:
    """Return the faults that are possible here, by name. A fault returns None if it finds no target."""
    found = {
        "rank 0 killed": lambda scene: _signal_process(scene, lambda worker: worker.ranks[0], "kill"),
        "rank 1 killed": lambda scene: _signal_process(scene, lambda worker: worker.ranks[1], "kill"),
        "rank stopped": lambda scene: _signal_process(
            scene, lambda worker: scene.rng.choice(worker.ranks), "suspend"
        ),
        "torchrun killed with its ranks": _kill_group,
        "supervisor killed": lambda scene: _signal_process(scene, lambda worker: worker.supervisor, "kill"),
        "supervisor stopped beyond its lease": _pause_supervisor,
        "machine paused beyond its lease": _pause_machine,
        "machine lost": _lose_machine,
        "worker drained": _drain,
        "error on one rank": lambda scene: _stage(scene, f"raises {scene.rng.randrange(2)}", goes_on=True),
        "out of memory on all ranks": lambda scene: _stage(scene, "memory", goes_on=False),
        "no disk space for the video": lambda scene: _stage(scene, "disk", goes_on=False),
        "worker cut off from redis": redis_faults.cut_off_worker,
        "api cut off from redis": redis_faults.cut_off_api,
        "redis killed": redis_faults.kill,
        "redis stalled": redis_faults.stall,
        "redis without replicas": redis_faults.refuse_without_replicas,
        "redis without snapshot": redis_faults.refuse_without_snapshot,
        "redis full": redis_faults.fill,
        "redis failed over": redis_faults.fail_over,
        "redis demoted": redis_faults.demote,
        "clock stepped": redis_faults.step_clock,
        "api killed": kill_api,
        "api killed in an order": kill_api_in_order,
        "api stopped": stop_api,
        "s3 down": lambda scene: make_s3(scene, "down"),
        "s3 failing": lambda scene: make_s3(scene, "failing"),
        "s3 throttling": lambda scene: make_s3(scene, "throttling"),
        "s3 denying access": lambda scene: make_s3(scene, "denying"),
        "s3 without its bucket": lambda scene: make_s3(scene, "bucketless"),
        "s3 slow": lambda scene: make_s3(scene, "slow"),
        "s3 cutting connections": lambda scene: make_s3(scene, "cutting"),
        "s3 showing files late": lambda scene: make_s3(scene, "late"),
        "decoder killed": kill_decoder,
        "supervisor killed while uploading": kill_uploading,
        "receivers hanging": hang_receivers,
        "job cancelled": _cancel,
        "poison job": _poison,
        "urgent job": _urgent,
    }
    if any(worker.is_elastic for worker in site.workers):
        found["rank killed during a change"] = _kill_during_change
    if all(worker.mounted for worker in site.workers):
        found["disk full"] = fill_disk
        found["upload disk full"] = fill_upload_disk
    return found


OUTAGES = {  # during these an API process may answer 503
    *("redis killed", "redis stalled", "redis without replicas", "redis without snapshot", "redis full"),
    *("redis failed over", "redis demoted", "s3 down", "s3 failing", "s3 slow", "s3 cutting connections"),
    *("s3 throttling", "s3 denying access", "s3 without its bucket", "api cut off from redis"),
    *("s3 showing files late", "decoder killed", "supervisor killed while uploading"),
    *("api killed in an order", "upload disk full"),
}
REDIS_FAULTS = {"clock stepped", *(kind for kind in OUTAGES if kind.startswith("redis"))}
SUPERVISOR_ENDS = {  # each of these ends a supervisor
    *("supervisor killed", "supervisor killed while uploading", "machine lost", "worker drained"),
}
CRASHES = {  # how many attempts of a job a fault of this kind may end
    **dict.fromkeys(
        [
            "rank 0 killed",
            "rank 1 killed",
            "rank stopped",
            "torchrun killed with its ranks",
            "supervisor killed",
            "supervisor killed while uploading",
            "supervisor stopped beyond its lease",
            "machine paused beyond its lease",
            "worker cut off from redis",
            "machine lost",
            "error on one rank",
            "rank killed during a change",
            "disk full",
        ],
        1,
    ),
    "poison job": MAX_ATTEMPTS,
}
ERRORS = {  # the error code with which a fault of this kind may fail a job
    "out of memory on all ranks": "out_of_memory",
    "no disk space for the video": "disk_full",
    "disk full": "disk_full",
}


def _signal_process(
    scene: Scene, choose: Callable[[Worker], psutil.Process | None], how: str
) -> ActiveFault | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = resumes_elsewhere(scene, worker)(job_id)
    with suppress(psutil.NoSuchProcess, IndexError):
        if process := choose(worker):
            getattr(process, how)()
            return ActiveFault(job_id, recovered)
    return None


def _kill_during_change(scene: Scene) -> ActiveFault | None:
    """Kill a rank while a job changes its ranks: one more job is submitted, which gets some of them."""
    if (found := busy(scene)) is None or (job_id := scene.order_urgent()) is None:
        return None
    worker, _ = found
    recovered = resumes_elsewhere(scene, worker)(job_id)
    seen = worker.log.stat().st_size
    with suppress(TimeoutError, psutil.NoSuchProcess, IndexError):
        wait_until(lambda: b"moves from ranks" in _after(worker.log, seen), PICKED_UP_S)
        time.sleep(scene.rng.uniform(0, LONGEST_CHANGE_S))
        scene.rng.choice(worker.ranks).kill()
        return ActiveFault(job_id, recovered)
    return None


def _after(file: Path, position: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(position)
        return opened.read()


def _kill_group(scene: Scene) -> ActiveFault | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = resumes_elsewhere(scene, worker)(job_id)
    with suppress(psutil.NoSuchProcess):
        for process in (worker.torchrun, *worker.ranks):
            if process:
                process.kill()
    return ActiveFault(job_id, recovered)


def _pause_supervisor(scene: Scene) -> ActiveFault | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    supervisor = worker.supervisor
    assert supervisor is not None
    return _pause(scene, worker, job_id, [supervisor])


def _pause_machine(scene: Scene) -> ActiveFault | None:
    """Stop all processes of a worker, as the host of a virtual machine may."""
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    return _pause(scene, worker, job_id, worker.processes)


def _pause(scene: Scene, worker: Worker, job_id: str, processes: list[psutil.Process]) -> ActiveFault:
    recovered = resumes_elsewhere(scene, worker)(job_id)
    _signal(processes, "suspend")
    return ActiveFault(
        job_id,
        recovered,
        lasts_s=LEASE_S + scene.rng.uniform(1, 4),
        repair=lambda: _signal(processes, "resume"),
    )


def _signal(processes: list[psutil.Process], how: str) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            getattr(process, how)()


def _lose_machine(scene: Scene) -> ActiveFault | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = resumes_elsewhere(scene, worker)(job_id)
    worker.lose_machine()
    return ActiveFault(job_id, recovered, lasts_s=scene.rng.uniform(0, 3), repair=worker.start)


def _drain(scene: Scene) -> ActiveFault | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = resumes_elsewhere(scene, worker)(job_id)
    worker.signal(signal.SIGTERM)
    status = worker.wait()
    assert status == 0, f"a drained worker ended with {status}"
    return ActiveFault(job_id, recovered, repair=worker.start)


def _stage(scene: Scene, what: str, *, goes_on: bool) -> ActiveFault | None:
    if (found := busy(scene)) is None:
        return None
    worker, _ = found
    recovered_of = resumes_elsewhere(scene, worker)
    fault = worker.checkpoint / f"fault-{worker.groups[0]}"
    _write_whole(fault, what)
    with suppress(TimeoutError):
        wait_until(lambda: not fault.exists(), PICKED_UP_S)
    with suppress(FileNotFoundError):  # it was picked up
        fault.unlink()
        return None
    picked_up = next(worker.checkpoint.glob(f"{fault.name}.*"))
    job_id = picked_up.suffix[1:]
    picked_up.unlink()
    return ActiveFault(job_id, recovered_of(job_id) if goes_on else lambda: ended(scene, job_id))


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f"part-{path.name}")
    part.write_text(text)
    part.rename(path)


def _cancel(scene: Scene) -> ActiveFault | None:
    job_id = scene.cancel_one()
    return ActiveFault(job_id, lambda: ended(scene, job_id)) if job_id else None


def _poison(scene: Scene) -> ActiveFault | None:
    job_id = scene.order_poison()
    return ActiveFault(job_id, lambda: ended(scene, job_id)) if job_id else None


def _urgent(scene: Scene) -> ActiveFault | None:
    """Submit a job of high priority, which preempts one of low priority unless a group is free first."""
    at_work = [status.job for status in live_groups(scene.site.redis) if status.job]
    if not any(scene.site.job_store.client.get(job_id).priority == "low" for job_id in at_work):
        return None
    job_id = scene.order_urgent()
    return ActiveFault(job_id, lambda: _begun(scene, job_id)) if job_id else None


def _begun(scene: Scene, job_id: str) -> float | None:
    return now() if scene.site.job_store.client.get(job_id).status != "queued" else None
