"""Metrics of jobs and webhooks are exported for Prometheus."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from jobs.errors import JOB_ERRORS, OutOfMemory
from jobs.registration import GroupRegistration, GroupState
from service.ops.metrics import POOL_GAUGES, SERIES
from tests.service.conftest import CAPABILITY


@pytest.fixture
def numbers(client):
    def read() -> dict[tuple[str, ...], float]:
        text = client.get("/metrics").text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(s.name, *s.labels.values()): s.value for s in samples}

    return read


def test_every_metric_is_declared_before_the_first_job(client):
    text = client.get("/metrics").text
    for series in SERIES:
        assert re.search(rf"# TYPE longcat_{series.name}(_total)? (counter|summary)", text), series.name


def test_job_is_counted_from_submission_to_end(order, worker, numbers, redis):
    GroupRegistration(redis, "by hand").heartbeat("busy", ranks=2)
    order(priority="high")
    worker.succeed(worker.claim())
    worker.job_store.holder.fail(order() and worker.claim(), OutOfMemory("does not fit"), {})
    found = numbers()
    assert found["longcat_wait_seconds_count", "high"] == 1
    assert found["longcat_run_seconds_count", "text_to_video"] == 2
    assert found["longcat_phase_seconds_sum", "denoise"] == 1.5
    assert found["longcat_video_seconds_total", "text_to_video"] > 0
    assert found["longcat_jobs_ended_total", "succeeded"] == 1
    assert found["longcat_failures_total", "out_of_memory"] == 1
    assert found["longcat_attempts_total",] == 2
    assert found["longcat_uploads_total", "stored"] == 1
    assert found["longcat_uploaded_bytes_total",] == len(b"a video")


@pytest.fixture
def full(client, redis):
    redis.config_set("maxmemory", "1")
    yield
    redis.config_set("maxmemory", "0")


@pytest.mark.usefixtures("full")
def test_metrics_are_exported_while_redis_is_full(numbers):
    found = numbers()
    assert found["longcat_redis_up",] == 1
    assert found["longcat_redis_memory_bytes",] > found["longcat_redis_max_memory_bytes",] == 1


def test_queued_jobs_are_exported_by_priority(order, numbers):
    for priority in ("high", "low", "low"):
        order(priority=priority)
    found = numbers()
    assert [found["longcat_queued_jobs", priority] for priority in ("high", "normal", "low")] == [1, 0, 2]


def test_every_state_of_groups_has_a_series(numbers):
    found = numbers()
    for state in ("starting", "ready", "busy", "full", "broken"):
        assert found["longcat_groups", state] == 0


def test_groups_that_are_broken_or_full_are_exported_by_name(numbers, redis):
    states: dict[str, GroupState] = {"a": "ready", "b": "broken", "c": "full", "d": "starting"}
    for group, state in states.items():
        GroupRegistration(redis, group).heartbeat(state, ranks=2)
    found = {key[1:]: value for key, value in numbers().items() if key[0] == "longcat_group_unavailable"}
    assert found == {("b", "broken"): 1, ("c", "full"): 1}


def test_every_known_pool_has_series_while_no_group_is_up(numbers, redis):
    registration = GroupRegistration(redis, "gone")
    registration.heartbeat("ready", 2, None, CAPABILITY)
    registration.release()
    found = numbers()
    starts = ("longcat_group_start_seconds_sum", "longcat_group_start_seconds_count")
    assert {found[name, CAPABILITY.pool] for name in (*POOL_GAUGES, *starts)} == {0}


def test_first_failure_is_an_increase_of_a_series_that_exists(numbers):
    found = numbers()
    for error in JOB_ERRORS:
        assert found["longcat_failures_total", error.code] == 0
    for cause in ("crashed", "drained", "preempted", "unreadable"):
        assert found["longcat_requeues_total", cause] == 0
    assert found["longcat_http_internal_errors_total",] == 0


def test_only_internal_errors_count_as_such(client, numbers, monkeypatch):
    client.get("/jobs/none")
    assert numbers()["longcat_http_internal_errors_total",] == 0
    monkeypatch.setattr(client.app.state.backend.job_store.client, "get", lambda *_, **__: 1 / 0)
    assert TestClient(client.app, raise_server_exceptions=False).get("/jobs/none").status_code == 500
    assert numbers()["longcat_http_internal_errors_total",] == 1


def test_backlog_of_a_pool_is_exported_in_gpu_seconds(order, worker, numbers, redis):
    capability = CAPABILITY.model_copy(update={"context_parallel": 4})
    GroupRegistration(redis, "a", ttl_s=600).heartbeat("busy", 4, None, capability)
    GroupRegistration(redis, "b", ttl_s=600).heartbeat("ready", 4, None, capability)
    order()
    redis.lpush(
        "longcat:recent_runs",
        f"text_to_video {numbers()['longcat_pool_backlog_work_units', capability.pool]:.0f} 30000",
    )
    found = numbers()
    assert found["longcat_pool_backlog_gpu_seconds", capability.pool] == pytest.approx(30 * 4)
    assert found["longcat_pool_busy_share", capability.pool] == 0.5
    assert (
        found["longcat_pool_queued_jobs", capability.pool],
        found["longcat_pool_held_jobs", capability.pool],
    ) == (1, 0)


def test_queued_job_has_an_eta_once_a_job_has_succeeded(client, order, worker, redis):
    GroupRegistration(redis, "live", ttl_s=600).heartbeat("ready", 1, None, CAPABILITY)
    assert order()["progress"] is None
    worker.succeed(worker.claim())
    progress = order()["progress"]
    assert (progress["phase"], progress["fraction"]) == ("load", 0)
    assert progress["eta_s"] >= 0


def test_unsent_webhooks_are_exported(order, worker, numbers):
    assert numbers()["longcat_webhook_backlog",] == 0
    order(webhook_url="https://example.com/hook")
    worker.claim()
    found = numbers()
    assert found["longcat_webhook_backlog",] == 1
    assert found["longcat_webhook_oldest_due_seconds",] >= 0
    assert found["longcat_webhook_paused_hosts",] == 0
