"""Owners see the GPU time that they used."""

from __future__ import annotations

from datetime import UTC, date, datetime

from service.keys.api_keys import ApiKeys


def test_owner_sees_only_their_own_usage(client, redis):
    today = (datetime.now(UTC).date() - date(1970, 1, 1)).days
    redis.hset(f"longcat:usage:{today}", mapping={"alice": 1500, "bob": 2000})
    everybody = client.get("/usage").json()["usage"]
    assert [(each["owner"], each["gpu_s"]) for each in everybody] == [("alice", 1.5), ("bob", 2.0)]
    headers = {"Authorization": f"Bearer {ApiKeys(redis).create('alice')}"}
    (own,) = client.get("/usage", headers=headers).json()["usage"]
    assert (own["owner"], own["gpu_s"]) == ("alice", 1.5)
    assert client.get("/usage").status_code == 401


def test_job_shows_its_gpu_time(client, order, worker, redis):
    job = order()
    assert job["gpu_s"] == 0.0
    claim = worker.claim()
    redis.hincrby(f"longcat:job:{job['id']}", "claimed_ms", -5000)
    worker.succeed(claim)
    shown = client.get(f"/jobs/{job['id']}").json()
    assert 5.0 <= shown["gpu_s"] < 60.0
    assert 'longcat_gpu_seconds_total{task="text_to_video"}' in client.get("/metrics").text
