"""The worker's health check tells a broken or silent group from a well one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from jobs.registration import GroupRegistration
from worker.settings import WorkerSettings

FOLDER = Path(__file__).parents[2] / "docker"


@pytest.fixture
def health(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("worker_health")


@pytest.fixture
def settings(redis, redis_server, tmp_path, monkeypatch):
    values = {"redis_url": redis_server, "checkpoint": tmp_path, "worker_name": "w", "ranks": 2}
    for name, value in values.items():
        monkeypatch.setenv(f"LONGCAT_{name.upper()}", str(value))
    monkeypatch.setenv("LONGCAT_CONTEXT_PARALLEL", "1")
    return WorkerSettings()


@pytest.mark.parametrize("state", ["starting", "ready", "busy"])
def test_a_worker_whose_groups_are_alive_is_well(health, settings, redis, state):
    for index in range(settings.num_groups):
        GroupRegistration(redis, settings.group_name(index)).heartbeat(state, ranks=1)
    assert health.main() == 0


def test_a_broken_group_is_named(health, settings, redis, capsys):
    GroupRegistration(redis, settings.group_name(0)).heartbeat("ready", ranks=1)
    GroupRegistration(redis, settings.group_name(1)).heartbeat("broken", ranks=1)
    assert health.main() == 1
    assert capsys.readouterr().err == "not well: w-1\n"


def test_a_silent_group_is_not_well(health, settings, redis):
    GroupRegistration(redis, settings.group_name(0)).heartbeat("ready", ranks=1)
    assert health.unhealthy(settings) == ["w-1"]


def test_groups_of_others_do_not_count(health, settings, redis):
    GroupRegistration(redis, "somebody-else").heartbeat("ready", ranks=1)
    assert health.unhealthy(settings) == ["w-0", "w-1"]


def test_an_outage_of_redis_is_not_the_workers_fault(health, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("LONGCAT_REDIS_URL", f"unix://{tmp_path}/nobody")
    assert health.main() == 0
