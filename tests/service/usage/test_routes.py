"""Owners see the GPU time that they used."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from jobs.errors import GenerationFailed
from service.keys.api_keys import ApiKeys
from tests.service.conftest import settings_for


def test_owner_sees_only_their_own_usage_and_an_admin_all(client, redis):
    today = (datetime.now(UTC).date() - date(1970, 1, 1)).days
    redis.hset(f"longcat:usage:{today}", mapping={"alice": 1500, "bob": 2000})
    everybody = client.get("/usage").json()["usage"]
    assert [(each["owner"], each["gpu_s"]) for each in everybody] == [("alice", 1.5), ("bob", 2.0)]
    headers = {"Authorization": f"Bearer {ApiKeys(redis).create('alice')}"}
    (own,) = client.get("/usage", headers=headers).json()["usage"]
    assert (own["owner"], own["gpu_s"]) == ("alice", 1.5)
    assert client.get("/usage").status_code == 401
    headers = {"Authorization": f"Bearer {ApiKeys(redis).create('ops', admin=True)}"}
    assert client.get("/usage", headers=headers).json()["usage"] == everybody


@pytest.fixture(scope="module")
def settings(redis_server, tmp_path_factory):
    """Return settings with a price."""
    return settings_for(
        redis_server, tmp_path_factory.mktemp("service"), gpu_hour_price=Decimal(36), currency="EUR"
    )


def test_job_and_usage_show_the_cost(client, order, worker, redis):
    assert order()["cost"] == {"predicted": None, "actual": 0.0, "currency": "EUR"}
    first = worker.claim()
    redis.hincrby(f"longcat:job:{first.job.id}", "claimed_ms", -5000)
    worker.succeed(first)
    predicted = order()["cost"]["predicted"]
    cost = client.get(f"/jobs/{first.job.id}").json()["cost"]
    assert 0.05 <= cost["actual"] < 0.6
    assert predicted == pytest.approx(cost["actual"])  # the next one is as large
    (day,) = client.get("/usage").json()["usage"]
    assert (day["costs"], day["lost_gpu_s"]) == ({"EUR": pytest.approx(cost["actual"])}, 0.0)
    assert 'longcat_cost_total{currency="EUR"}' in client.get("/metrics").text


def test_job_shows_gpu_time_by_phase_and_lost_work(client, order, worker, redis):
    job, claim = order(), worker.claim()
    key = f"longcat:job:{job['id']}"
    redis.hset(key, mapping={"num_gpus": 2, "lost_gpu_ms": 4000, "gpu_ms": 30_000})
    timings_s = {"load": 1.0, "encode": 2.0, "denoise": 6.0, "decode": 1.5, "upload": 3.0}
    worker.job_store.holder.fail(claim, GenerationFailed("no"), timings_s)
    shown = client.get(f"/jobs/{job['id']}").json()
    assert shown["gpu_phases_s"] == {"encode": 4.0, "denoise": 12.0, "decode": 3.0}
    assert shown["lost_gpu_s"] == 4.0
    redis.hset(key, "gpu_ms", 9500)
    assert sum(client.get(f"/jobs/{job['id']}").json()["gpu_phases_s"].values()) == pytest.approx(9.5)


def test_job_shows_its_gpu_time(client, order, worker, redis):
    job = order()
    assert job["gpu_s"] == 0.0
    claim = worker.claim()
    redis.hincrby(f"longcat:job:{job['id']}", "claimed_ms", -5000)
    worker.succeed(claim)
    shown = client.get(f"/jobs/{job['id']}").json()
    assert 5.0 <= shown["gpu_s"] < 60.0
    assert 'longcat_gpu_seconds_total{task="text_to_video"}' in client.get("/metrics").text
