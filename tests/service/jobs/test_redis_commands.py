"""A request takes the same number of Redis commands whatever the number of owners with queued jobs.

A read of an event stream takes few commands for each job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from redis import Redis

from jobs.record import Progress
from jobs.store.job_store import JobStore
from jobs.store.submission import Submission
from service.app import create_app
from service.jobs.event_streams import EventStream
from service.jobs.events import MAX_JOBS, read_if_authorized
from service.jobs.views import JobView
from tests.orders import make_order
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.working import backend_of_request

NUM_JOBS = 1000


@pytest.fixture
def app(redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """Return a service that does nothing between two requests, and reads nothing again because it is old."""
    monkeypatch.setattr("jobs.fleet.MAX_FLEET_AGE_S", 3600.0)
    monkeypatch.setattr("jobs.store.memory._FRESH_S", 3600.0)
    return create_app(settings_for(redis_server, tmp_path))


@pytest.fixture
def client(app: FastAPI, redis: Redis) -> Iterator[TestClient]:
    with TestClient(app) as client:
        set_only_pool(redis, CAPABILITY)
        yield client


def counted(redis: Redis, request: Callable[[], object]) -> dict[str, int]:
    """Return how many commands of each kind a request takes, those inside scripts included."""
    request()  # loads the scripts
    redis.config_resetstat()
    request()
    stats = redis.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): command["calls"] for name, command in stats.items()}
    return {name: count for name, count in calls.items() if not name.startswith("config")}  # of this function


def num_commands(redis: Redis, request: Callable[[], object]) -> int:
    return sum(counted(redis, request).values())


def commands_by_request(client: TestClient, redis: Redis, num_owners: int) -> dict[str, int]:
    jobs = JobStore(redis).client
    for number in range(NUM_JOBS):
        jobs.submit(Submission(id=f"job-{number}", order=make_order(), owner=f"owner-{number % num_owners}"))
    requests: dict[str, Callable[[], object]] = {
        "submit": lambda: client.post("/generate", json={"prompt": "a red ball"}).raise_for_status(),
        "get": lambda: client.get(f"/jobs/job-{NUM_JOBS // 2}").raise_for_status(),
        "list": lambda: client.get("/jobs?limit=100").raise_for_status(),
    }
    counts = {name: num_commands(redis, request) for name, request in requests.items()}
    redis.flushall()
    set_only_pool(redis, CAPABILITY)
    return counts


def test_commands_per_request_do_not_depend_on_the_number_of_owners(client: TestClient, redis: Redis):
    of_one, of_many = (commands_by_request(client, redis, num_owners) for num_owners in (1, NUM_JOBS))
    assert of_many == of_one
    assert of_one["get"] < 30
    assert of_one["list"] < 100 * 7


@pytest.fixture
def read_stream(app: FastAPI, client: TestClient) -> Callable[[], list[JobView] | None]:
    """Return a function that reads a stream of as many jobs as one may have."""
    stream = EventStream("", {f"job-{number}": "0" for number in range(MAX_JOBS)})
    backend = backend_of_request(app.state.backend)
    return lambda: read_if_authorized(stream, backend)


def test_read_of_a_stream_takes_two_commands_for_each_job(
    redis: Redis, read_stream: Callable[[], list[JobView] | None]
):
    jobs = JobStore(redis)
    for number in range(MAX_JOBS):
        jobs.client.submit(Submission(id=f"job-{number}", order=make_order()))
        lease = jobs.holder.claim("group", 60)
        assert lease
        for step in range(20):
            jobs.holder.renew_lease(lease, Progress(phase="denoise", step=step))
    commands = counted(redis, read_stream)
    assert commands["xrevrange"] == commands["hgetall"] == MAX_JOBS
    assert sum(commands.values()) <= 2 * MAX_JOBS + 10


def test_queue_is_read_once_for_all_jobs_of_a_stream(
    redis: Redis, read_stream: Callable[[], list[JobView] | None]
):
    jobs = JobStore(redis).client
    for number in range(MAX_JOBS):
        jobs.submit(Submission(id=f"job-{number}", order=make_order()))
    commands = counted(redis, read_stream)
    assert commands["evalsha"] == 1
    assert sum(commands.values()) < 12 * MAX_JOBS
