"""The operator decides which qualities may be requested; the threshold is stored with the order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.app import create_app
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.media import clip, in_base64

BALANCED = {"prompt": "a red ball", "quality": "balanced"}
THRESHOLD = 0.125


@pytest.fixture
def permissive(redis_server, redis, tmp_path_factory) -> Iterator[TestClient]:
    """Return a client of a service whose operator allows `balanced`."""
    settings = settings_for(redis_server, tmp_path_factory.mktemp("permissive"), step_cache=THRESHOLD)
    set_only_pool(redis, CAPABILITY)
    with TestClient(create_app(settings)) as client:
        yield client


def test_videos_are_exact_unless_asked_for_otherwise(permissive, worker):
    job = permissive.post("/generate", json={"prompt": "a red ball"}).json()
    assert job["request"]["quality"] == "exact"
    assert worker.claim().job.order.plan.step_cache is None


def test_threshold_of_balanced_is_stored_with_the_order(permissive, worker):
    job = permissive.post("/generate", json=BALANCED).json()
    assert job["request"]["quality"] == "balanced"
    assert worker.claim().job.order.plan.step_cache == THRESHOLD


def test_quality_may_be_set_in_a_form_and_on_openais_routes(permissive, worker):
    form = {name: (None, value) for name, value in BALANCED.items()}
    for path, status in (("/generate", 202), ("/v1/videos", 200)):
        assert permissive.post(path, files=form).status_code == status
        assert worker.claim().job.order.plan.step_cache == THRESHOLD


def test_balanced_is_refused_with_its_own_code_unless_the_operator_allows_it(client, worker):
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
def test_quality_that_other_options_exclude_is_refused(permissive, change):
    answer = permissive.post("/generate", json={**BALANCED, **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    assert answer.json()["error"]["field"] == "quality"


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, "much"])
def test_threshold_must_be_between_0_and_1(redis_server, tmp_path, threshold):
    with pytest.raises(ValidationError, match="step_cache"):
        settings_for(redis_server, tmp_path, step_cache=threshold)
