"""The drill of `docs/redis.md`: copy the data of a running server and restore it on another port."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from jobs.connect import connect
from jobs.errors import LeaseLost
from jobs.maintenance import sweep
from jobs.queue import TicketQueue, consume
from jobs.store.idempotency import IdempotencyKeys
from jobs.store.job_store import JobStore
from jobs.store.outbox import Outbox
from tests.background import repeating
from tests.jobs.examples import LEASE_S, a_result, a_submission
from tests.redis_fleet import RedisProcess
from tests.servers import redis_program
from tests.waiting import wait_until


def copy_append_only_file(server: RedisProcess, redis: Redis, to: Path) -> tuple[str, ...]:
    """Copy the file, and return the options with which a server reads the copy."""
    redis.config_set("auto-aof-rewrite-percentage", "0")
    wait_until(lambda: not redis.info("persistence")["aof_rewrite_in_progress"])
    to.mkdir()
    for path in server.folder.glob("appendonly*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, to / path.name)
    redis.config_set("auto-aof-rewrite-percentage", "100")
    return ()


def save_snapshot(server: RedisProcess, redis: Redis, to: Path) -> tuple[str, ...]:
    """Save a snapshot, and return the options with which a server reads it."""
    cli = Path(redis_program().path).with_name("redis-cli")
    if not cli.exists():
        pytest.skip("needs redis-cli")
    to.mkdir()
    redis.config_set("repl-diskless-sync-delay", "0")  # otherwise it waits five seconds for other replicas
    subprocess.run(
        [cli, "-p", str(server.port), "--rdb", str(to / "dump.rdb")], check=True, capture_output=True
    )
    return "--appendonly", "no"


@contextmanager
def writing(redis: Redis) -> Iterator[None]:
    """Submit jobs meanwhile, so that the copy is made of a server at work."""
    store = JobStore(redis)
    with repeating(lambda: store.client.submit(a_submission(priority="low")), pause_s=0.005):
        yield


@pytest.mark.parametrize("copy", [copy_append_only_file, save_snapshot])
def test_jobs_queue_fences_and_keys_are_restored(
    tmp_path: Path, copy: Callable[[RedisProcess, Redis, Path], tuple[str, ...]]
):
    with RedisProcess(tmp_path / "original") as server, connect(server.url) as redis:
        store = JobStore(redis)
        keys = IdempotencyKeys(redis)
        for name in ("ended", "held", "queued"):
            reserved = keys.reserve("a", name, "fingerprint")
            store.client.submit(
                a_submission(
                    id=reserved.job_id, key_reservation=reserved, owner="a", webhook_url="http://127.0.0.1/"
                )
            )
        first, second = (store.holder.claim("g", lease_s=600.0) for _ in range(2))
        assert first is not None
        assert second is not None
        store.holder.succeed(first, a_result(first), {})
        store.holder.save_checkpoint(second, {"step": 7})
        with writing(redis):
            wait_until(lambda: store.client.counts()["queued"] > 20)
            options = copy(server, redis, tmp_path / "copy")
        queued_id = keys.reserve("a", "queued", "fingerprint").job_id

    with RedisProcess(tmp_path / "copy", options) as server, connect(server.url) as redis:
        if options:
            redis.config_set("appendonly", "yes")
        restored = JobStore(redis)
        tickets = TicketQueue(redis)
        sweep(restored, tickets)
        assert restored.client.get(first.job.id).result == a_result(first)
        assert IdempotencyKeys(redis).reserve("a", "queued", "fingerprint").job_id == queued_id
        assert restored.holder.renew_lease(second) is None, "its holder may go on"
        restored.holder.requeue(second, crashed=False)
        again = restored.holder.claim("g", LEASE_S)
        assert again is not None
        assert (again.job.id, again.fence, again.checkpoint) == (second.job.id, 2, {"step": 7})
        with pytest.raises(LeaseLost):
            restored.holder.save_checkpoint(second, {})
        assert Outbox(redis).take(30.0) is not None
        following = restored.holder.claim("g", LEASE_S)
        assert following is not None
        assert following.job.id == queued_id
        tickets.top_up(1)
        taken: list[int] = []
        consume(redis, lambda: taken.append(1), lambda: bool(taken))
