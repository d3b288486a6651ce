"""Faults of Redis: killed, stalled, cut off, refusing writes, full, failing over, with a clock that steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis import Redis
from redis.exceptions import ResponseError

from tests.chaos.scene import ActiveFault, Scene, busy, resumes_elsewhere
from tests.chaos.site import LEASE_S, now
from tests.waiting import wait_until

CLOCK = "longcat:clock"
STEPS_S = (3600, -3600, 8 * 86400)
WRITES_BEYOND_LIMIT = 64 << 10  # bytes that still fit when a full Redis begins to refuse writes


def kill(scene: Scene) -> ActiveFault:
    scene.site.redis_server.kill_primary()
    return _outage(scene, scene.site.redis_server.restart_primary)


def stall(scene: Scene) -> ActiveFault:
    """Stop the process: connections stay open, and nothing is answered."""
    primary = scene.site.redis_server.primary
    primary.signal(signal.SIGSTOP)
    return _outage(scene, lambda: primary.signal(signal.SIGCONT))


def refuse_without_replicas(scene: Scene) -> ActiveFault:
    """Let Redis answer NOREPLICAS to every write."""
    with _primary(scene) as primary:
        primary.config_set("min-replicas-to-write", 3)
    return _outage(scene, _on_primary(scene, lambda primary: primary.config_set("min-replicas-to-write", 0)))


def refuse_without_snapshot(scene: Scene) -> ActiveFault:
    """Let Redis answer MISCONF to every write: a folder is in the way of its snapshot."""
    obstacle = scene.site.redis_server.primary.folder / "dump.rdb"
    obstacle.unlink(missing_ok=True)
    obstacle.mkdir()
    with _primary(scene) as primary:
        primary.config_set("save", "3600 1")
        _snapshot(primary, "err")

    def repair() -> None:
        obstacle.rmdir()
        with _primary(scene) as primary:
            _snapshot(primary, "ok")
            primary.config_set("save", "")

    return _outage(scene, repair)


def fill(scene: Scene) -> ActiveFault:
    """Let Redis answer OOM to every command that needs memory."""
    with _primary(scene) as primary:
        primary.config_set("maxmemory", int(primary.info("memory")["used_memory"]) + WRITES_BEYOND_LIMIT)
    return _outage(scene, _on_primary(scene, lambda primary: primary.config_set("maxmemory", 0)))


def fail_over(scene: Scene) -> ActiveFault:
    """Move the name to the replica, and close all connections to the old primary."""
    scene.site.redis_server.fail_over()
    with scene.site.redis_server.replica.client as demoted:
        demoted.client_kill_filter(_type="normal")
    return _outage(scene, lambda: None)


def demote(scene: Scene) -> ActiveFault:
    """Move the name to the replica. Open connections stay with the old primary, which refuses writes."""
    scene.site.redis_server.fail_over()
    return _outage(scene, lambda: None)


def step_clock(scene: Scene) -> ActiveFault:
    """Step the clock of the server by an hour or by days, as the scripts see it.

    They compare its time with the one that the last sweep stored. Changing that one steps the clock for them.
    """
    step_s = scene.rng.choice(STEPS_S)
    with _primary(scene) as primary:
        primary.hincrby(CLOCK, "server_ms", -1000 * step_s)
    return _outage(scene, lambda: None)


def cut_off_worker(scene: Scene) -> ActiveFault | None:
    """Cut the connection of a worker to Redis until its lease has expired. It still reaches S3."""
    if (found := busy(scene)) is None:
        return None
    worker, job_id = found
    recovered = resumes_elsewhere(scene, worker)(job_id)
    worker.redis_link.cut()
    return ActiveFault(
        job_id, recovered, lasts_s=LEASE_S + scene.rng.uniform(1, 4), repair=worker.redis_link.mend
    )


def cut_off_api(scene: Scene) -> ActiveFault:
    """Cut the connection of an API process to Redis. What it sends meanwhile arrives later."""
    url = scene.rng.choice(list(scene.site.apis))
    link = scene.site.apis[url].redis_link
    link.cut()
    return _outage(scene, link.mend, url)


def _outage(scene: Scene, repair: Callable[[], None], api: str | None = None) -> ActiveFault:
    """Return a fault that is over when an API process is ready and can write to Redis again."""
    url = api or scene.rng.choice(list(scene.site.apis))
    return ActiveFault(
        None,
        lambda: (
            now() if scene.client.answers(url, "/readyz?workers=1") and scene.client.writes(url) else None
        ),
        lasts_s=scene.rng.choice((0.0, 2.0, LEASE_S + 3)),
        repair=repair,
        from_repair=True,
    )


def _on_primary(scene: Scene, act: Callable[[Redis], object]) -> Callable[[], None]:
    def run() -> None:
        with _primary(scene) as primary:
            act(primary)

    return run


@contextmanager
def _primary(scene: Scene) -> Iterator[Redis]:
    with scene.site.redis_server.primary.client as client:
        yield client


def _snapshot(client: Redis, outcome: str) -> None:
    """Save snapshots until one ends in this way."""

    def has_ended() -> bool:
        found = client.info("persistence")
        if found["rdb_last_bgsave_status"] == outcome:
            return True
        if not found["rdb_bgsave_in_progress"]:
            try:
                client.bgsave()
            except ResponseError:  # the append-only file is being rewritten
                return False
        return False

    wait_until(has_ended)
