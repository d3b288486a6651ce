"""The numbers of jobs and webhooks, as Prometheus reads them."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.capability import GroupRegistration
from jobs.errors import OutOfMemory
from service.ops.metrics import BOUNDS, SERIES


@pytest.fixture
def numbers(client):
    def read() -> dict[tuple[str, ...], float]:
        text = client.get("/metrics").text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(s.name, *s.labels.values()): s.value for s in samples}

    return read


def test_every_series_is_announced_before_there_is_anything(client):
    text = client.get("/metrics").text
    for series in SERIES:
        assert re.search(rf"# TYPE longcat_{series.name}(_total)? (counter|histogram)", text), series.name


def test_a_job_is_measured_from_its_order_to_its_end(order, worker, numbers, redis):
    GroupRegistration(redis, "by hand").publish("busy", ranks=2)
    order(priority="high")
    worker.succeed(worker.claim())
    worker.job_store.holder.fail(order() and worker.claim(), OutOfMemory("does not fit"), {})
    found = numbers()
    assert found["longcat_wait_seconds_count", "high"] == 1
    assert found["longcat_run_seconds_count", "text_to_video"] == 2
    assert found["longcat_phase_seconds_sum", "denoise"] == 1.5
    assert found["longcat_gpu_seconds_per_video_second_count", "text_to_video"] == 1
    assert found["longcat_jobs_ended_total", "succeeded"] == 1
    assert found["longcat_failures_total", "out_of_memory"] == 1
    assert found["longcat_attempts_total",] == 2
    assert found["longcat_uploads_total", "stored"] == 1
    assert found["longcat_uploaded_bytes_total",] == len(b"a video")


def test_a_histogram_rises_to_its_count(order, worker, numbers):
    order()
    worker.succeed(worker.claim())
    found = numbers()
    counts = [found["longcat_phase_seconds_bucket", f"{bound:.4g}", "denoise"] for bound in BOUNDS]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 1)
    assert found["longcat_phase_seconds_bucket", "+Inf", "denoise"] == 1
    below = [bound for bound, count in zip(BOUNDS, counts, strict=True) if count == 0]
    assert below[-1] < 1.5


def test_the_queue_is_shown_by_priority(order, numbers):
    for priority in ("high", "low", "low"):
        order(priority=priority)
    found = numbers()
    assert [found["longcat_queued_jobs", priority] for priority in ("high", "normal", "low")] == [1, 0, 2]


def test_the_eta_of_a_queued_job_is_shown_once_one_can_be_told(client, order, worker):
    assert order()["progress"] is None
    worker.succeed(worker.claim())
    progress = order()["progress"]
    assert (progress["phase"], progress["fraction"]) == ("load", 0)
    assert progress["eta_s"] >= 0


def test_webhooks_that_wait_are_counted(order, worker, numbers):
    assert numbers()["longcat_webhook_backlog",] == 0
    order(webhook_url="https://example.com/hook")
    worker.claim()
    found = numbers()
    assert found["longcat_webhook_backlog",] == 1
    assert found["longcat_webhook_oldest_due_seconds",] >= 0
    assert found["longcat_webhook_paused_hosts",] == 0
