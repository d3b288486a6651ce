"""Cause outages of Redis, the API, S3 and disks. Each lasts for a while."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress

import httpx

from jobs.registration import live_groups
from tests.chaos.daemons import Daemon
from tests.chaos.orders import draw_image
from tests.chaos.s3_proxy import Health
from tests.chaos.scene import ActiveFault, Scene, busy, ended
from tests.chaos.site import LEASE_S, now
from tests.waiting import wait_until

BALLAST = bytes(1 << 20)


def kill_redis(scene: Scene) -> ActiveFault:
    server = scene.site.redis_server
    server.kill()
    url = scene.rng.choice(list(scene.site.apis))
    return ActiveFault(
        None,
        lambda: now() if scene.client.answers(url, "/readyz") else None,
        lasts_s=scene.rng.choice((0.0, 2.0, LEASE_S + 3)),
        repair=server.start,
        from_repair=True,
    )


def kill_api(scene: Scene) -> ActiveFault:
    return _kill_api_at(scene, scene.rng.choice(list(scene.site.apis)))


def _kill_api_at(scene: Scene, url: str) -> ActiveFault:
    api: Daemon = scene.site.apis[url]
    api.signal(signal.SIGKILL)
    api.wait(10)
    return ActiveFault(
        None,
        lambda: now() if scene.client.answers(url, "/readyz") else None,
        lasts_s=scene.rng.uniform(0, 2),
        repair=api.start,
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
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(BALLAST):
            pass
    return ActiveFault(
        job_id,
        lambda: ended(scene, job_id),
        lasts_s=scene.rng.uniform(1, 3),
        repair=lambda: ballast.unlink(missing_ok=True),
        from_repair=True,
    )
