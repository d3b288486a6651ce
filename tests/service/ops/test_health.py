"""Liveness, readiness and request metrics."""

from __future__ import annotations

import pytest

from jobs.errors import OutOfMemory, Unavailable
from jobs.registration import GroupRegistration


def metric(client, name):
    """Return the value of a metric, by its name with labels."""
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), None)


def test_service_is_live_without_a_worker(no_worker_yet):
    assert no_worker_yet.get("/livez").json() == {"status": "ok"}


def test_service_is_ready_without_a_worker(no_worker_yet):
    assert no_worker_yet.get("/readyz").json() == {"status": "ok"}


def test_service_is_not_ready_without_its_storage(client, app, monkeypatch):
    def refuse() -> None:
        raise Unavailable("the store cannot be reached")

    monkeypatch.setattr(app.state.backend.storage, "check", refuse)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("state", "status"), [("ready", 200), ("busy", 200), ("starting", 503), ("full", 503), ("broken", 503)]
)
def test_workers_are_ready_if_a_group_is_ready_or_busy(client, redis, state, status):
    assert client.get("/readyz?workers=1").status_code == 503
    GroupRegistration(redis, "first").heartbeat(state, ranks=2)
    assert client.get("/readyz?workers=1").status_code == status


def test_workers_are_ready_with_one_ready_group_among_broken_ones(client, redis):
    GroupRegistration(redis, "first").heartbeat("broken", ranks=1)
    GroupRegistration(redis, "second").heartbeat("ready", ranks=1)
    assert client.get("/readyz?workers=1").json() == {"status": "ok"}


def test_response_lists_the_states_of_groups_that_are_not_ready(client, redis):
    assert "there is none" in client.get("/readyz?workers=1").json()["error"]["message"]
    GroupRegistration(redis, "first").heartbeat("broken", ranks=1)
    GroupRegistration(redis, "second").heartbeat("full", ranks=1)
    assert "broken, full" in client.get("/readyz?workers=1").json()["error"]["message"]


def test_response_does_not_show_everybody_why_a_group_is_broken(client, redis):
    GroupRegistration(redis, "first").heartbeat("broken", ranks=2, failure="rank 1: no file /home/me/weights")
    message = client.get("/readyz?workers=1").json()["error"]["message"]
    assert "broken" in message
    assert "rank 1" not in message


def test_released_group_no_longer_counts(client, redis):
    registration = GroupRegistration(redis, "first")
    registration.heartbeat("ready", ranks=1)
    registration.release()
    answer = client.get("/readyz?workers=1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
    assert int(answer.headers["Retry-After"]) > 0


def test_jobs_are_counted_by_status(client, order, worker):
    for _ in range(4):
        order()
    worker.succeed(worker.claim())
    worker.job_store.holder.fail(worker.claim(), OutOfMemory("does not fit"), {})
    worker.claim()
    counts = [
        metric(client, f'longcat_jobs{{status="{s}"}}') for s in ("queued", "running", "succeeded", "failed")
    ]
    assert counts == [1, 1, 1, 1]
    assert metric(client, 'longcat_queued_jobs{priority="normal"}') == 1
    assert metric(client, 'longcat_oldest_queued_seconds{priority="normal"}') >= 0


def test_groups_are_counted_by_state(client, redis):
    GroupRegistration(redis, "a").heartbeat("ready", ranks=1)
    GroupRegistration(redis, "b").heartbeat("busy", ranks=1)
    GroupRegistration(redis, "c").heartbeat("busy", ranks=1)
    assert metric(client, 'longcat_groups{state="busy"}') == 2
    assert metric(client, 'longcat_groups{state="ready"}') == 1


def test_requests_are_counted_by_route_template(client, order):
    name = 'longcat_http_requests_total{method="GET",route="/jobs/{job_id}",status="200"}'
    before = metric(client, name) or 0
    for job in (order(), order()):
        client.get(f"/jobs/{job['id']}")
    assert metric(client, name) == before + 2


def test_unknown_paths_and_methods_create_no_labels(client):
    for path in ("/wp-login.php", "/jobs/a/b/c/d", "/%00"):
        client.get(path)
    client.request("BREW", "/livez")
    text = client.get("/metrics").text
    assert not any(word in text for word in ("wp-login", "BREW", "/a/b"))
    assert 'method="other"' in text


def test_metrics_are_in_prometheus_format(client):
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "# TYPE longcat_jobs gauge" in answer.text
    assert "# TYPE longcat_http_requests_total counter" in answer.text
