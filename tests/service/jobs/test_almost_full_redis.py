"""The memory that new jobs leave free in Redis is enough for all accepted jobs to run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from jobs.connect import connect
from jobs.queue import consume
from jobs.record import Progress
from jobs.storage.folder import FolderStorage
from jobs.store import memory
from jobs.store.job_store import JobStore
from service.app import create_app
from tests.pools import set_only_pool
from tests.redis_fleet import RedisProcess
from tests.service.conftest import CAPABILITY, Worker, settings_for

pytestmark = pytest.mark.integration

ROOM_BYTES = 3 << 19  # for about 80 jobs
NUM_REPORTS = 60  # of the progress of a job; together they are longer than all else that Redis has of it


@dataclass
class Site:
    """A service and a worker with a Redis of their own."""

    redis: Redis
    client: TestClient
    store: JobStore
    worker: Worker

    def submit_until_refused(self) -> int:
        """Return the number of accepted jobs."""
        num_jobs = 0
        while (answer := self.client.post("/generate", json={"prompt": "a red ball"})).status_code == 202:
            num_jobs += 1
        assert answer.status_code == 503
        assert "almost full" in answer.json()["error"]["message"]
        return num_jobs

    def run_all(self) -> None:
        consume(self.redis, self._run_next, lambda: not self.store.client.counts()["queued"], self._needed)

    def _needed(self) -> list[str]:
        return self.store.holder.requirements(CAPABILITY) or []

    def _run_next(self) -> None:
        if lease := self.store.holder.claim("a", lease_s=600.0):
            for step in range(NUM_REPORTS):
                self.store.holder.renew_lease(lease, Progress(phase="denoise", step=step))
            self.worker.succeed(lease)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(memory, "_FRESH_S", 0.0)
    with RedisProcess(tmp_path / "redis") as server, connect(server.url) as redis:
        redis.config_set("appendonly", "no")
        settings = settings_for(server.url, tmp_path / "service")
        with TestClient(create_app(settings)) as client:
            set_only_pool(redis, CAPABILITY)
            store = JobStore(redis)
            yield Site(redis, client, store, Worker(store, FolderStorage(tmp_path / "videos"), tmp_path))


def test_all_accepted_jobs_run_and_redis_does_not_become_full(site: Site):
    assert site.client.post("/generate", json={"prompt": "a red ball"}).status_code == 202
    site.run_all()  # once, so that scripts and buffers of connections are in memory already
    site.redis.config_set("maxmemory", memory.memory(site.redis).used_bytes + ROOM_BYTES)
    num_jobs = site.submit_until_refused()
    assert num_jobs > 50
    site.run_all()
    assert site.store.client.counts()["succeeded"] == 1 + num_jobs
    found = memory.memory(site.redis)
    assert found.used_bytes < found.max_bytes
