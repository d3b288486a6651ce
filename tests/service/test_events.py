"""Watching a job by server-sent events, from a service that really listens."""

from __future__ import annotations

import http.client
import json
from contextlib import contextmanager

import pytest

from jobs.record import Progress
from jobs.submission import Submission


@contextmanager
def watching(port, job_id, last_event_id=None):
    """The events of a job as they come: id, kind and job."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    connection.request("GET", f"/jobs/{job_id}/events", headers=headers)
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    try:
        yield events(response)
    finally:
        connection.close()


def events(response):
    fields = {}
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name in {"id", "event", "data"}:
            fields[name] = value
        elif fields and not name:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


@pytest.fixture
def job_id(live):
    connection = http.client.HTTPConnection("127.0.0.1", live, timeout=30)
    connection.request("POST", "/generate", '{"prompt": "a red ball"}', {"Content-Type": "application/json"})
    job = json.load(connection.getresponse())
    connection.close()
    return job["id"]


def step(number):
    return Progress(phase="denoise", step=number, num_steps=4, fraction=number / 4)


def test_a_job_is_told_from_the_queue_to_its_end(live, job_id, worker):
    with watching(live, job_id) as told:
        _, kind, job = next(told)
        assert (kind, job["status"], job["queue_position"]) == ("status", "queued", 1)
        claim = worker.claim()
        _, kind, job = next(told)
        assert (kind, job["status"]) == ("status", "running")
        worker.ledger.beat(claim, step(1))
        _, kind, job = next(told)
        assert (kind, job["progress"]["step"]) == ("progress", 1)
        worker.succeed(claim)
        rest = list(told)
    assert [kind for _, kind, _ in rest][-1:] == ["done"]
    assert rest[-1][2]["result"]["video_url"] == f"/jobs/{job_id}/video"


def test_whoever_comes_back_goes_on_where_it_left(live, job_id, worker):
    claim = worker.claim()
    with watching(live, job_id) as told:
        seen, _, _ = next(told)
    worker.ledger.beat(claim, step(2))
    with watching(live, job_id, last_event_id=seen) as told:
        event_id, _, job = next(told)
        assert job["progress"]["step"] == 2
        assert tuple(map(int, event_id.split("-"))) > tuple(map(int, seen.split("-")))


@pytest.mark.parametrize("after", [None, "0", "99999999999999-0"])
def test_a_job_that_ended_long_ago_is_told_in_one_event(live, job_id, worker, after):
    worker.succeed(worker.claim())
    with watching(live, job_id, last_event_id=after) as told:
        assert [(kind, job["status"]) for _, kind, job in told] == [("done", "succeeded")]


def test_a_waiting_job_is_told_its_place_in_the_queue(live, job_id, worker):
    other = worker.ledger.get(job_id)
    with watching(live, job_id) as told:
        assert next(told)[2]["queue_position"] == 1
        worker.ledger.submit(Submission(id="first", order=other.order, priority="high"))
        _, kind, job = next(told)
        assert (kind, job["queue_position"]) == ("progress", 2)


def test_the_stream_ends_when_the_job_is_deleted(live, job_id, worker):
    with watching(live, job_id) as told:
        assert next(told)[1] == "status"
        worker.ledger.delete(job_id)
        assert [kind for _, kind, _ in told] in ([], ["done"])


def test_an_event_id_that_is_none_is_refused(client, order):
    for event_id in ("abc", "1-2-3", "-1", "1" * 40, "$"):
        answer = client.get(f"/jobs/{order()['id']}/events", headers={"Last-Event-ID": event_id})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "Last-Event-ID")


def test_events_of_no_job_are_not_found(client):
    assert client.get("/jobs/nobody/events").status_code == 404
