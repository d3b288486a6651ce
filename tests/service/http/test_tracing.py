"""One trace from the client's own span over the request and the queue to each phase of the run."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from fastapi.testclient import TestClient
from opentelemetry.trace import NoOpTracerProvider

from jobs.record import Progress
from jobs.settings import SharedSettings
from jobs.tracing import close_tracing, open_tracing
from service.app import create_app
from tests.collector import collecting
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.waiting import wait_until
from worker.supervisor.timeline import JobTimeline
from worker.supervisor.tracing import spans_of
from worker.telemetry import Interval

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
PHASES = [("encode", 0), ("denoise", 0), ("denoise", 0), ("decode", 0), ("denoise", 1), ("upload", 1)]


@pytest.fixture
def collector(monkeypatch):
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield collector


@pytest.fixture
def traced(collector, redis, redis_server, tmp_path):
    """A client of a service that traces."""
    set_only_pool(redis, CAPABILITY)
    with TestClient(create_app(settings_for(redis_server, tmp_path))) as client:
        yield client


@pytest.fixture
def ours(collector):
    """What a supervisor begins its spans with."""
    tracing = open_tracing("longcat-worker", wanted=True)
    yield tracing
    close_tracing(tracing)


def order(client, **headers):
    answer = client.post("/generate", json={"prompt": "a"}, headers=headers)
    assert answer.status_code == 202
    return answer.json()["id"]


def run(worker, ours, status="succeeded"):
    """What a supervisor tells of the next job."""
    claim = worker.claim()
    timeline = JobTimeline(spans_of(claim, ours))
    for phase, segment in PHASES:
        timeline.enter_phase(Progress(phase=phase, segment=segment, num_segments=2))
    timeline.finish(status)
    timeline.finish(None)
    return claim


def named(collector, name):
    return wait_until(lambda: [span for span in collector.spans if span.name == name])


def test_a_job_is_one_trace_from_the_client_to_its_phases(traced, collector, worker, ours):
    job_id = order(traced, traceparent=TRACEPARENT)
    run(worker, ours)
    wait_until(lambda: len(collector.of(job_id)) == 8)
    (post,), (queue,), (ran,) = (named(collector, name) for name in ("POST /generate", "queue", "run"))
    assert {span.trace_id for span in [post, *collector.of(job_id)]} == {TRACE}
    assert (post.parent_id, queue.parent_id, ran.parent_id) == (CALLER, post.span_id, post.span_id)
    phases = [span for span in collector.of(job_id) if span.parent_id == ran.span_id]
    assert [(span.name, span.values["longcat.segment"]) for span in phases] == [
        *[("load", 0), ("encode", 0), ("denoise", 0), ("decode", 0), ("denoise", 1), ("upload", 1)]
    ]
    assert all(one.ended_ns <= next_.began_ns for one, next_ in pairwise(phases))
    assert [span.values["longcat.lane"] for span in phases] == ["job", *["ranks"] * 4, "storage"]
    assert (post.process, ran.process) == ("longcat-service", "longcat-worker")
    assert (post.values["http.route"], post.values["http.response.status_code"]) == ("/generate", 202)
    assert (ran.values["longcat.status"], ran.failed) == ("succeeded", False)


def test_a_client_that_traces_nothing_begins_a_trace(traced, collector, worker, ours):
    job_id = order(traced)
    run(worker, ours)
    (post,) = named(collector, "POST /generate")
    assert post.parent_id == ""
    wait_until(lambda: {span.trace_id for span in collector.of(job_id)} == {post.trace_id})


def test_a_client_that_does_not_sample_is_obeyed(traced, collector, worker, ours):
    order(traced, traceparent=TRACEPARENT.removesuffix("01") + "00")
    run(worker, ours)
    close_tracing(ours)
    order(traced)
    named(collector, "POST /generate")
    assert TRACE not in {span.trace_id for span in collector.spans}


def test_a_job_that_nobody_traced_so_far_is_a_trace_of_its_own(client, order, collector, worker, ours):
    order()
    claim = run(worker, ours)
    (ran,), (queue,) = (named(collector, name) for name in ("run", "queue"))
    assert (queue.parent_id, ran.parent_id) == ("", queue.span_id)
    assert ran.values["longcat.job_id"] == claim.job.id


def test_later_attempt_is_a_sibling_of_the_first_without_a_span_for_the_queue(
    traced, collector, worker, ours
):
    order(traced, traceparent=TRACEPARENT)
    worker.job_store.holder.requeue(run(worker, ours, "queued"), crashed=True)
    run(worker, ours)
    wait_until(lambda: len(named(collector, "run")) == 2)
    first, second = named(collector, "run")
    assert first.parent_id == second.parent_id
    assert [span.values["longcat.attempt"] for span in (first, second)] == [1, 2]
    assert len(named(collector, "queue")) == 1


def test_span_of_what_failed_has_an_error(traced, collector, worker, ours):
    order(traced)
    run(worker, ours, "failed")
    assert named(collector, "run")[0].failed
    assert (named(collector, "upload")[0].failed, named(collector, "encode")[0].failed) == (True, False)
    traced.post("/generate", json={})
    refused = wait_until(lambda: named(collector, "POST /generate")[1:])[0]
    assert (refused.values["http.response.status_code"], refused.failed) == (422, False)


def test_only_what_makes_or_changes_jobs_is_traced(traced, collector):
    job_id = order(traced)
    traced.get(f"/jobs/{job_id}")
    traced.post(f"/jobs/{job_id}/cancel")
    named(collector, "POST /jobs/{job_id}/cancel")
    assert {span.name for span in collector.spans} == {"POST /generate", "POST /jobs/{job_id}/cancel"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_SDK_DISABLED": "false"}, False),
    ],
)
def test_the_standard_variables_say_whether_to_trace(monkeypatch, environment, wanted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert SharedSettings().traces is wanted


def test_missing_sdk_is_logged_and_nothing_is_traced(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert isinstance(open_tracing("longcat-service", wanted=True), NoOpTracerProvider)
    assert "[otel]" in caplog.text


def test_exporter_is_not_imported_without_a_collector(redis_server, tmp_path):
    script = (
        "import sys, worker.supervisor.app\n"
        "from service.app import create_app\nfrom service.settings import Settings\n"
        f"create_app(Settings(redis_url={redis_server!r}, data_dir={str(tmp_path)!r}))\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.exporter')])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_work_beside_the_phases_is_a_span_unless_it_is_a_detail(traced, collector, worker, ours):
    order(traced)
    claim = worker.claim()
    spans = spans_of(claim, ours)
    timeline = JobTimeline(spans)
    for name, detail in (("x264", True), ("join", False)):
        timeline.add(Interval(name=name, lane="video", began_s=1.0, ended_s=1.5, detail=detail))
    timeline.finish("succeeded")
    (ran,), (joined,) = named(collector, "run"), named(collector, "join")
    assert (joined.parent_id, joined.ended_ns - joined.began_ns) == (ran.span_id, 500_000_000)
    assert {span.name for span in collector.of(claim.job.id)} == {"queue", "run", "load", "join"}


def test_without_tracing_a_job_keeps_the_trace_of_its_client(client, worker):
    order(client, traceparent=TRACEPARENT)
    claim = run(worker, open_tracing("longcat-worker", wanted=False))
    assert claim.job.traceparent == TRACEPARENT
