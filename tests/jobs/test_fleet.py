"""Groups publish what they can make; the service reads which pools are live and which have gone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from redis import Redis

import jobs.fleet
from jobs.capability import Capability
from jobs.connect import connect
from jobs.errors import NoCapability, Unavailable
from jobs.fleet import FleetReader, read_fleet
from jobs.registration import GroupRegistration, live_groups

FULL = Capability(
    model="LongCat-Video",
    tasks=("text_to_video", "image_to_video"),
    limits={"fps": 15, "buckets": {"480p": {"1.00": [640, 640]}}},
    loras=("cfg_step_lora",),
    context_parallel=2,
    device="cpu",
    dtype="float32",
)
PLAIN = FULL.model_copy(update={"loras": ()})


def register(
    redis: Redis, group: str, capability: Capability | None, state: Any = "ready"
) -> GroupRegistration:
    registration = GroupRegistration(redis, group)
    registration.heartbeat(state, 2, None, capability)
    return registration


def test_no_pool_is_known_before_a_group_published_its_capability(redis: Redis):
    register(redis, "a", None, "starting")
    assert read_fleet(redis).pools == ()
    with pytest.raises(NoCapability):
        read_fleet(redis).first()


def test_groups_with_equal_capabilities_are_one_pool(redis: Redis):
    for group, capability in (("a", PLAIN), ("b", FULL), ("c", FULL)):
        register(redis, group, capability)
    found = {pool.name: [group.group for group in pool.groups] for pool in read_fleet(redis).pools}
    assert found == {FULL.pool: ["b", "c"], PLAIN.pool: ["a"]}


@pytest.fixture
def fleet_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what was read for an hour."""
    monkeypatch.setattr(jobs.fleet, "MAX_FLEET_AGE_S", 3600.0)


@pytest.mark.usefixtures("fleet_is_kept")
class TestFleetReader:
    def test_recent_fleet_is_read_again_only_when_it_is_too_old(self, redis: Redis, monkeypatch):
        reader = FleetReader(redis)
        assert reader.recent().pools == ()
        register(redis, "a", PLAIN)
        assert reader.recent().pools == ()
        monkeypatch.setattr(jobs.fleet, "MAX_FLEET_AGE_S", 0.0)
        assert [pool.name for pool in reader.recent().pools] == [PLAIN.pool]

    def test_reading_the_current_fleet_renews_the_recent_one(self, redis: Redis):
        reader = FleetReader(redis)
        assert reader.recent().pools == ()
        register(redis, "a", PLAIN)
        fleet = reader.current()
        assert reader.recent() is fleet

    def test_current_fleet_is_read_again_after_each_change(self, redis: Redis):
        reader = FleetReader(redis)
        assert reader.current().pools == ()
        first = register(redis, "a", PLAIN)
        assert [len(pool.groups) for pool in reader.current().live] == [1]
        second = register(redis, "b", PLAIN)
        assert [len(pool.groups) for pool in reader.current().live] == [2]
        second.heartbeat("broken", 1, capability=PLAIN)
        assert [group.state for group in reader.current().live[0].groups] == ["ready", "broken"]
        second.heartbeat("ready", 1, capability=FULL)
        assert [pool.capability for pool in reader.current().live] == [FULL, PLAIN]
        first.release()
        assert [pool.capability for pool in reader.current().live] == [FULL]

    def test_groups_at_work_do_not_change_the_fleet(self, redis: Redis, monkeypatch):
        monkeypatch.setattr(jobs.fleet, "_SEEN_RESOLUTION_MS", 10**15)  # no next minute begins meanwhile
        group = register(redis, "a", PLAIN)
        reader = FleetReader(redis)
        fleet = reader.current()
        group.heartbeat("busy", 1, "job", PLAIN)
        assert reader.current() is fleet

    def test_current_fleet_knows_for_how_long_a_pool_has_been_away(self, redis: Redis):
        register(redis, "a", PLAIN).release()
        reader = FleetReader(redis)
        assert reader.current().first().away_s < 59
        redis.zincrby("longcat:pools", -60_000, PLAIN.pool)
        assert reader.current().first().away_s >= 59


def test_most_capable_live_pool_comes_first(redis: Redis):
    register(redis, "a", PLAIN)
    full = register(redis, "b", FULL)
    assert [pool.capability for pool in read_fleet(redis).pools] == [FULL, PLAIN]
    full.release()
    assert [pool.capability for pool in read_fleet(redis).pools] == [PLAIN, FULL]


def test_broken_group_is_registered_but_not_up(redis: Redis):
    register(redis, "a", FULL)
    register(redis, "b", FULL, "broken")
    register(redis, "c", PLAIN, "broken")
    fleet = read_fleet(redis)
    found = {pool.name: [group.group for group in pool.groups_up] for pool in fleet.pools}
    assert found == {FULL.pool: ["a"], PLAIN.pool: []}
    assert [pool.name for pool in fleet.live] == [FULL.pool]


def test_pool_is_remembered_after_its_last_group_has_gone(redis: Redis):
    register(redis, "a", FULL).release()
    assert live_groups(redis) == []
    (pool,) = read_fleet(redis).pools
    assert (pool.capability, pool.is_live) == (FULL, False)


def test_configured_pool_is_never_away(redis: Redis):
    (pool,) = read_fleet(redis, configured=FULL).pools
    assert (pool.capability, pool.away_s, pool.is_live) == (FULL, 0.0, False)
    register(redis, "a", FULL).release()
    redis.zincrby("longcat:pools", -60_000, FULL.pool)
    assert read_fleet(redis).first().away_s >= 59
    (pool,) = read_fleet(redis, configured=FULL).pools
    assert pool.away_s == 0.0


def test_configured_pool_that_is_live_has_its_groups(redis: Redis):
    register(redis, "a", FULL)
    assert read_fleet(redis, configured=FULL) == read_fleet(redis)


def test_pool_is_forgotten_in_the_end(redis: Redis):
    register(redis, "a", FULL).release()
    assert 29 * 86400 < redis.ttl(f"longcat:pool:{FULL.pool}") <= 30 * 86400


def test_broken_group_is_not_live(redis: Redis):
    register(redis, "a", FULL, "broken")
    assert read_fleet(redis).live == ()


def test_unknown_task_is_not_published():
    with pytest.raises(ValidationError):
        Capability(model="x", tasks=("poetry",), limits={}, device="cpu", dtype="float32")


def test_unknown_fields_are_ignored(redis: Redis):
    document = {**FULL.model_dump(mode="json"), "schema_version": 2, "colour_depth": 10}
    register(redis, "a", FULL)
    redis.set(f"longcat:pool:{FULL.pool}", json.dumps(document))
    assert read_fleet(redis).first().capability == FULL.model_copy(update={"schema_version": 2})


def test_pool_that_cannot_be_read_is_passed_over(redis: Redis, caplog: pytest.LogCaptureFixture):
    register(redis, "a", PLAIN)
    register(redis, "b", FULL)
    redis.set(f"longcat:pool:{FULL.pool}", json.dumps({"tasks": ["poetry"]}))
    assert [pool.capability for pool in read_fleet(redis).pools] == [PLAIN]
    assert "passed over a capability" in caplog.text


def test_unavailable_without_redis():
    with pytest.raises(Unavailable):
        read_fleet(connect("redis://127.0.0.1:1", deadline_s=0))
