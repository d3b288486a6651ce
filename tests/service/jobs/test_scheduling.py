"""Jobs carry what the operator has set about the order in which they start."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from redis import Redis

from jobs.store.scripts import text
from service.keys.api_keys import ApiKeys
from service.settings import Settings
from tests.service.conftest import settings_for


@pytest.fixture(scope="module")
def settings(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("service")
    return settings_for(redis_server, folder, owner_weights="studio=2,trial=0.5", priority_ageing_s=90)


@pytest.fixture
def stored(client, redis: Redis):
    """Return a function that submits a job of an owner and returns fields of its record."""

    def submit(owner: str, *names: str) -> list[str]:
        key = ApiKeys(redis).create(owner)
        headers = {"Authorization": f"Bearer {key}"}
        job = client.post("/generate", json={"prompt": "a red ball"}, headers=headers).json()
        return [text(value) for value in redis.hmget(f"longcat:job:{job['id']}", names)]

    return submit


@pytest.mark.parametrize(("owner", "weight"), [("studio", "2"), ("trial", "0.5"), ("other", "1")])
def test_job_carries_the_weight_of_its_owner(stored, owner: str, weight: str):
    assert stored(owner, "weight") == [weight]


def test_job_carries_the_ageing_time(stored):
    assert stored("studio", "ageing_ms") == ["90000"]


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("studio=0", "a weight must be above 0"),
        ("studio=-1", "must be NAME=NUMBER"),
        ("studio", "must be NAME=NUMBER"),
        ("studio=x", "must be NAME=NUMBER"),
    ],
)
def test_weights_that_are_not_positive_numbers_are_refused(tmp_path: Path, weights: str, problem: str):
    with pytest.raises(ValidationError, match=problem):
        settings_for("redis://", tmp_path, owner_weights=weights)


def test_shares_must_not_all_be_zero(tmp_path: Path):
    with pytest.raises(ValidationError, match="a share must be above 0"):
        settings_for("redis://", tmp_path, model_shares="new=0,old=0")


def test_ageing_can_be_turned_off(tmp_path: Path):
    assert settings_for("redis://", tmp_path, priority_ageing_s="none").priority_ageing_s is None
