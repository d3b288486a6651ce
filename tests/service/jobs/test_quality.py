"""Which quality may be ordered is the operator's to say; what is settled stays with the job."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.app import create_app
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.media import clip, in_base64

BALANCED = {"prompt": "a red ball", "quality": "balanced"}
THRESHOLD = 0.125


@pytest.fixture
def generous(redis_server, redis, tmp_path_factory) -> Iterator[TestClient]:
    """A client of a service whose operator allows it."""
    settings = settings_for(redis_server, tmp_path_factory.mktemp("generous"), step_cache=THRESHOLD)
    CAPABILITY.publish(redis)
    with TestClient(create_app(settings)) as client:
        yield client


def test_videos_are_exact_unless_asked_for_otherwise(generous, worker):
    job = generous.post("/generate", json={"prompt": "a red ball"}).json()
    assert job["request"]["quality"] == "exact"
    assert worker.claim().job.order.plan.step_cache is None


def test_what_balanced_means_is_settled_when_it_is_ordered(generous, worker):
    job = generous.post("/generate", json=BALANCED).json()
    assert job["request"]["quality"] == "balanced"
    assert worker.claim().job.order.plan.step_cache == THRESHOLD


def test_it_may_be_said_in_a_form_and_to_openais_routes(generous, worker):
    form = {name: (None, value) for name, value in BALANCED.items()}
    for path, status in (("/generate", 202), ("/v1/videos", 200)):
        assert generous.post(path, files=form).status_code == status
        assert worker.claim().job.order.plan.step_cache == THRESHOLD


def test_what_the_operator_does_not_allow_is_refused_by_a_code_of_its_own(client, worker):
    error = {
        "code": "quality_not_allowed",
        "message": "quality: this service makes exact videos only",
        "field": "quality",
    }
    answer = client.post("/generate", json=BALANCED)
    assert (answer.status_code, answer.json()) == (422, {"error": error})
    answer = client.post("/v1/videos", json=BALANCED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "quality_not_allowed")
    assert sum(worker.job_store.client.counts().values()) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"distilled": True},
        {"guidance_scale": 1.0},
        {"task": "refine", "video": {"base64": in_base64(clip(9))}},
        {"quality": "best"},
    ],
)
def test_where_nothing_can_be_balanced_it_is_refused(generous, change):
    answer = generous.post("/generate", json={**BALANCED, **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    assert answer.json()["error"]["field"] == "quality"


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, "much"])
def test_a_threshold_is_a_share(redis_server, tmp_path, threshold):
    with pytest.raises(ValidationError, match="step_cache"):
        settings_for(redis_server, tmp_path, step_cache=threshold)
