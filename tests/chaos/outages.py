"""Cause outages of the API, S3, disks and webhook receivers. Each lasts for a while."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from jobs.registration import live_groups
from jobs.store.listing import JobFilter
from jobs.store.outbox import Outbox
from tests.chaos.daemons import Daemon, Worker, command_of
from tests.chaos.orders import Body, draw_image
from tests.chaos.s3_proxy import Health
from tests.chaos.scene import ActiveFault, Scene, busy, ended
from tests.chaos.site import MAX_ATTEMPTS, now
from tests.waiting import wait_until

BALLAST = bytes(1 << 20)


def kill_api(scene: Scene) -> ActiveFault:
    return _kill_api_at(scene, scene.rng.choice(list(scene.site.apis)))


def _kill_api_at(scene: Scene, url: str) -> ActiveFault:
    api: Daemon = scene.site.apis[url]
    api.signal(signal.SIGKILL)
    api.wait()
    return ActiveFault(
        None,
        lambda: now() if scene.client.answers(url, "/readyz?workers=1") else None,
        lasts_s=scene.rng.uniform(0, 2),
        repair=api.start,
        from_repair=True,
    )


def stop_api(scene: Scene) -> ActiveFault:
    """Stop an API process, which then accepts connections and answers none, and let it go on.

    A timer does that, because the campaign itself may wait for an answer of this process.
    """
    url, lasts_s = scene.rng.choice(list(scene.site.apis)), scene.rng.uniform(2, 8)
    process = scene.site.apis[url].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(lasts_s, process.send_signal, [signal.SIGCONT])
    timer.start()
    return ActiveFault(
        None,
        lambda: now() if scene.client.answers(url, "/readyz?workers=1") else None,
        lasts_s=lasts_s,
        repair=timer.join,
        from_repair=True,
    )


def kill_api_in_order(scene: Scene) -> ActiveFault:
    """Kill an API process while it stores an input of a job. The client does not repeat its request."""
    url, body, s3 = scene.rng.choice(list(scene.site.apis)), draw_image(scene.rng), scene.site.s3
    s3.health, before = "slow", len(s3.slowed)

    def order() -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"{url}/generate", json=body, timeout=30)

    client = threading.Thread(target=order)
    client.start()
    with suppress(TimeoutError):  # the machine may be too busy
        wait_until(lambda: any(_stores_input(request) for request in s3.slowed[before:]), 20)
    active = _kill_api_at(scene, url)
    client.join()
    s3.health = "well"
    return active


def _stores_input(request: str) -> bool:
    return request.startswith("PUT ") and "/inputs/" in request


def kill_decoder(scene: Scene) -> ActiveFault | None:
    """Kill the fork server of an API process that decodes inputs, while it receives one."""
    url, body = scene.rng.choice(list(scene.site.apis)), draw_image(scene.rng)
    process = scene.site.apis[url].process
    assert process is not None
    decoders = [
        child
        for child in psutil.Process(process.pid).children()
        if "model.media.forkserver" in command_of(child)
    ]
    if not decoders:
        return None
    clients = [threading.Thread(target=_order_quietly, args=(url, body)) for _ in range(3)]
    for client in clients:
        client.start()
    decoders[0].kill()
    for client in clients:
        client.join()
    return ActiveFault(None, lambda: now() if _order_quietly(url, body) else None, from_repair=True)


def _order_quietly(url: str, body: Body) -> bool:
    """Order a video of which the campaign keeps no account. Return whether the order was accepted."""
    try:
        answer = httpx.post(f"{url}/generate", json=body, timeout=30)
    except httpx.HTTPError:
        return False
    assert answer.status_code in {202, 503}, answer.text
    if answer.status_code == 202:
        with suppress(httpx.HTTPError):
            httpx.post(f"{url}/jobs/{answer.json()['id']}/cancel", timeout=30)
    return answer.status_code == 202


def kill_uploading(scene: Scene) -> ActiveFault | None:
    """Kill a supervisor while it stores a video."""
    s3 = scene.site.s3
    s3.health = "slow"
    try:
        wait_until(lambda: _uploading(scene) is not None, 20)
        found = _uploading(scene)
    except TimeoutError:
        found = None
    s3.health = "well"
    if found is None:
        return None
    worker, job_id = found
    supervisor = worker.supervisor
    if supervisor is None:
        return None
    supervisor.kill()
    return ActiveFault(job_id, lambda: ended(scene, job_id))


def _uploading(scene: Scene) -> tuple[Worker, str] | None:
    workers = {group: worker for worker in scene.site.workers if worker.runs for group in worker.groups}
    for job in scene.site.job_store.client.page(JobFilter(("uploading",)), 20).jobs:
        if job.group in workers and job.attempt < MAX_ATTEMPTS:
            return workers[job.group], job.id
    return None


def hang_receivers(scene: Scene) -> ActiveFault:
    """Let the receiver hang, and wait until a webhook arrives again or none is to be sent."""
    receiver, repaired_at = scene.site.receiver, [0.0]
    receiver.hangs = True

    def repair() -> None:
        receiver.hangs, repaired_at[0] = False, now()

    def recovered() -> float | None:
        if receiver.received_at > repaired_at[0]:
            return receiver.received_at
        return now() if Outbox(scene.site.redis).backlog().num_deliveries == 0 else None

    return ActiveFault(None, recovered, lasts_s=scene.rng.uniform(2, 10), repair=repair, from_repair=True)


def make_s3(scene: Scene, health: Health) -> ActiveFault:
    """Make S3 fail. It has recovered when a file is stored again, or when no job runs to store one."""
    s3, at = scene.site.s3, [0.0]
    s3.health = health

    def repair() -> None:
        s3.health, at[0] = "well", now()

    def recovered() -> float | None:
        if s3.stored_at > at[0]:
            return s3.stored_at
        return now() if not any(status.job for status in live_groups(scene.site.redis)) else None

    return ActiveFault(None, recovered, lasts_s=scene.rng.uniform(2, 6), repair=repair, from_repair=True)


def fill_disk(scene: Scene) -> ActiveFault | None:
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    ballast = worker.disk / "ballast"
    _fill(ballast)
    return ActiveFault(
        job_id,
        lambda: ended(scene, job_id),
        lasts_s=scene.rng.uniform(1, 3),
        repair=lambda: ballast.unlink(missing_ok=True),
        from_repair=True,
    )


def fill_upload_disk(scene: Scene) -> ActiveFault:
    """Fill the disk that holds the inputs of requests, and order from an image meanwhile."""
    url, body = scene.rng.choice(list(scene.site.apis)), draw_image(scene.rng)
    ballast = scene.site.upload_disk.seen_at / "ballast"
    _fill(ballast)
    _order_quietly(url, body)
    return ActiveFault(
        None,
        lambda: now() if scene.client.answers(url, "/readyz") and _order_quietly(url, body) else None,
        lasts_s=scene.rng.uniform(1, 6),
        repair=lambda: ballast.unlink(missing_ok=True),
        from_repair=True,
    )


def _fill(ballast: Path) -> None:
    """Write a file until its disk is full."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(BALLAST):
            pass
