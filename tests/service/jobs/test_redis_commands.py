"""A request takes the same number of Redis commands whatever the number of owners with queued jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from jobs.store.job_store import JobStore
from jobs.store.submission import Submission
from service.app import create_app
from tests.orders import make_order
from tests.service.conftest import CAPABILITY, settings_for

NUM_JOBS = 1000


@pytest.fixture
def client(redis_server: str, redis: Redis, tmp_path) -> Iterator[TestClient]:
    """Return a client of a service that does nothing between two requests."""
    with TestClient(create_app(settings_for(redis_server, tmp_path, sweep_interval_s=3600))) as client:
        CAPABILITY.publish(redis)
        yield client


def num_commands(redis: Redis, request: Callable[[], object]) -> int:
    """Return how many commands a request takes, those inside scripts included."""
    request()  # loads the scripts
    redis.config_resetstat()
    request()
    return sum(command["calls"] for command in redis.info("commandstats").values()) - 1  # CONFIG RESETSTAT


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
    CAPABILITY.publish(redis)
    return counts


def test_commands_per_request_do_not_depend_on_the_number_of_owners(client: TestClient, redis: Redis):
    of_one, of_many = (commands_by_request(client, redis, num_owners) for num_owners in (1, NUM_JOBS))
    assert of_many == of_one
    assert of_one["get"] < 30
    assert of_one["list"] < 100 * 7
