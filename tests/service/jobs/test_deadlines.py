"""Clients say when they want a video, and are told when they can expect it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from jobs.registration import GroupRegistration
from tests.service.conftest import CAPABILITY

Order = Callable[..., dict[str, Any]]
SECOND = timedelta(seconds=1)


@pytest.fixture
def each_takes_60_s(redis: Redis, order: Order) -> None:
    """Let the store know of a job of the default size that took 60 s, and of one group."""
    job = order()
    work_units = int(redis.hget(f"longcat:job:{job['id']}", "work_units") or 0)
    redis.lpush("longcat:recent_runs", f"text_to_video {work_units} 60000")


@pytest.fixture
def one_group(redis: Redis, each_takes_60_s: None) -> None:
    GroupRegistration(redis, "a", ttl_s=600).heartbeat("ready", 1, capability=CAPABILITY)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.usefixtures("one_group")
class TestPrediction:
    def test_job_shows_when_it_is_wanted_and_expected(self, order: Order):
        job = order(deadline_s=600)
        assert at(job["deadline_at"]) - at(job["created_at"]) == timedelta(seconds=600)
        expected_s = at(job["predicted_finish_at"]) - datetime.now(UTC)
        assert 50 * SECOND < expected_s <= 60 * SECOND  # it starts before the job without a deadline
        assert (job["deadline_met"], job["warnings"]) == (None, [])
        assert job["request"]["deadline_s"] == 600

    def test_earlier_deadline_is_expected_earlier(self, client: TestClient, order: Order):
        calm, urgent = order(deadline_s=3000), order(deadline_s=300)
        calm = client.get(f"/jobs/{calm['id']}").json()
        assert urgent["queue_position"] < calm["queue_position"]
        assert at(urgent["predicted_finish_at"]) < at(calm["predicted_finish_at"]) - 50 * SECOND

    def test_late_job_is_accepted_with_a_warning(self, order: Order):
        job = order(deadline_s=30)
        assert job["warnings"] == [
            "deadline_s: the video is expected 120 s after submission, later than 30 s"
        ]
        assert job["queue_position"] == 2

    def test_late_request_is_refused_if_it_asks_for_that(self, client: TestClient, redis: Redis):
        queued = redis.zcard("longcat:index:queued")
        body = {"prompt": "a red ball", "deadline_s": 30, "refuse_if_late": True}
        answer = client.post("/generate", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["field"]) == (
            409,
            "deadline_too_early",
            "deadline_s",
        )
        assert redis.zcard("longcat:index:queued") == queued

    def test_request_in_time_is_accepted_if_it_asks_for_that(self, client: TestClient):
        body = {"prompt": "a red ball", "deadline_s": 200, "refuse_if_late": True}
        assert client.post("/generate", json=body).status_code == 202

    def test_late_jobs_do_not_keep_others_from_being_in_time(self, client: TestClient, order: Order):
        order(deadline_s=30)
        body = {"prompt": "a red ball", "deadline_s": 100, "refuse_if_late": True}
        answer = client.post("/generate", json=body)
        assert (answer.status_code, answer.json()["queue_position"]) == (202, 1)

    def test_idempotent_request_is_answered_although_it_would_be_late_now(self, client: TestClient):
        body = {"prompt": "a red ball", "deadline_s": 100, "refuse_if_late": True}
        headers = {"Idempotency-Key": "once"}
        first = client.post("/generate", json=body, headers=headers)
        for _ in range(3):
            client.post("/generate", json={"prompt": "a red ball", "deadline_s": 10})
        again = client.post("/generate", json=body, headers=headers)
        assert (first.status_code, again.status_code) == (202, 202)
        assert again.json()["id"] == first.json()["id"]

    def test_form_and_openai_take_the_same_options(self, client: TestClient):
        form = client.post(
            "/generate", files={"prompt": (None, "a ball"), "deadline_s": (None, "500")}
        ).json()
        video = client.post("/v1/videos", json={"prompt": "a ball", "deadline_s": 500}).json()
        other = client.get(f"/jobs/{video['id']}").json()
        assert [job["request"]["deadline_s"] for job in (form, other)] == [500, 500]


def test_nothing_is_late_while_nothing_is_known(client: TestClient):
    body = {"prompt": "a red ball", "deadline_s": 0.5, "refuse_if_late": True}
    answer = client.post("/generate", json=body)
    assert (answer.status_code, answer.json()["predicted_finish_at"]) == (202, None)


def test_job_with_the_shortest_deadline_can_be_requested_again(client: TestClient, order: Order):
    job = order(deadline_s=0.001)
    assert job["request"]["deadline_s"] == 0.001
    assert client.post(f"/jobs/{job['id']}/retry").json()["request"]["deadline_s"] == 0.001


def test_job_without_a_deadline_shows_none(order: Order):
    job = order()
    assert [job["deadline_at"], job["deadline_met"], job["request"]["deadline_s"]] == [None, None, None]


@pytest.mark.parametrize(
    "fields",
    [
        {"deadline_s": 0},
        {"deadline_s": -1},
        {"deadline_s": 0.0009},  # would be shown as 0
        {"deadline_s": 1e9},
        {"deadline_s": "soon"},
        {"refuse_if_late": True},
    ],
)
def test_impossible_deadline_is_refused(client: TestClient, fields: dict[str, object]):
    answer = client.post("/generate", json={"prompt": "a red ball", **fields})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(tuple(fields))
