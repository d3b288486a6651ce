"""Server-sent events: a stream follows its job, continues after a reconnect, and ends."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from jobs.record import Progress
from jobs.store.events import changed_jobs
from jobs.store.submission import Submission
from service.app import create_app
from service.jobs.event_streams import EventStream
from service.jobs.events import read_if_authorized
from service.jobs.showing import show_all
from service.keys.api_keys import ApiKeys
from tests.pools import set_only_pool
from tests.redis_fleet import RedisProcess
from tests.servers import answers, free_port
from tests.service.conftest import CAPABILITY, serving, settings_for
from tests.service.working import backend_of_request
from tests.waiting import wait_until


@contextmanager
def watching(port, job_id="", last_event_id=None, path=None):
    """Yield the id, kind and job of each event."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    connection.request("GET", path or f"/jobs/{job_id}/events", headers=headers)
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


def test_stream_follows_a_job_from_the_queue_to_its_end(live, job_id, worker):
    with watching(live, job_id) as told:
        _, kind, job = next(told)
        assert (kind, job["status"], job["queue_position"]) == ("status", "queued", 1)
        claim = worker.claim()
        _, kind, job = next(told)
        assert (kind, job["status"]) == ("status", "running")
        worker.job_store.holder.renew_lease(claim, step(1))
        _, kind, job = next(told)
        assert (kind, job["progress"]["step"]) == ("progress", 1)
        worker.succeed(claim)
        rest = list(told)
    assert [kind for _, kind, _ in rest][-1:] == ["done"]
    assert rest[-1][2]["result"]["video_url"] == f"/jobs/{job_id}/video"


def test_reconnected_client_continues_after_its_last_event(live, job_id, worker):
    claim = worker.claim()
    with watching(live, job_id) as told:
        seen, _, _ = next(told)
    worker.job_store.holder.renew_lease(claim, step(2))
    with watching(live, job_id, last_event_id=seen) as told:
        event_id, _, job = next(told)
        assert job["progress"]["step"] == 2
        assert tuple(map(int, event_id.split("-"))) > tuple(map(int, seen.split("-")))


@pytest.mark.parametrize("after", [None, "", "0", "99999999999999-0"])
def test_finished_job_is_sent_as_one_event(live, job_id, worker, after):
    worker.succeed(worker.claim())
    with watching(live, job_id, last_event_id=after) as told:
        assert [(kind, job["status"]) for _, kind, job in told] == [("done", "succeeded")]


def test_queued_job_is_sent_with_its_changing_position(live, job_id, worker):
    other = worker.job_store.client.get(job_id)
    with watching(live, job_id) as told:
        assert next(told)[2]["queue_position"] == 1
        worker.job_store.client.submit(Submission(id="first", order=other.order, priority="high"))
        _, kind, job = next(told)
        assert (kind, job["queue_position"]) == ("progress", 2)


def test_stream_ends_when_the_job_is_deleted(live, job_id, worker):
    with watching(live, job_id) as told:
        assert next(told)[1] == "status"
        worker.job_store.client.delete(job_id)
        assert [kind for _, kind, _ in told] in ([], ["done"])


def test_invalid_event_id_is_refused(client, order):
    for event_id in ("abc", "1-2-3", "-1", "1" * 40, "$"):
        answer = client.get(f"/jobs/{order()['id']}/events", headers={"Last-Event-ID": event_id})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "Last-Event-ID")


def test_events_of_an_unknown_job_are_not_found(client):
    assert client.get("/jobs/nobody/events").status_code == 404


@contextmanager
def connected(port, job_id, key=None):
    """Open a stream on a raw socket."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connection.request("GET", f"/jobs/{job_id}/events", headers=headers)
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def rest_of(stream):
    """Return the rest of a stream, or fail if it does not end."""
    return b"".join(itertools.islice(stream, 200))


class TestEndOfStream:
    def test_stream_ends_when_the_key_is_revoked(self, live, redis, worker, job_id):
        keys = ApiKeys(redis)
        mine, other = keys.create("me"), keys.create("me")
        order = worker.job_store.client.get(job_id).order
        worker.job_store.client.submit(Submission(id="mine", order=order, owner="me"))
        with connected(live, "mine", mine) as ends, connected(live, "mine", other) as goes_on:
            assert (ends.status, goes_on.status) == (200, 200)
            keys.revoke(mine.split("_")[1])
            assert rest_of(ends).endswith(b": you are no longer allowed to see this\n\n")
            worker.job_store.client.cancel("mine")
            assert b"event: done" in rest_of(goes_on)

    def test_stream_says_that_redis_cannot_be_reached(self, tmp_path):
        with RedisProcess(tmp_path / "redis") as server, server.client() as redis:
            set_only_pool(redis, CAPABILITY)
            with serving(create_app(settings_for(server.url, tmp_path, redis_patience_s=10.0))) as port:
                body = {"prompt": "a red ball"}
                job_id = httpx.post(f"http://127.0.0.1:{port}/generate", json=body, timeout=60).json()["id"]
                with connected(port, job_id) as stream:
                    assert stream.readline()[:3] == b"id:"
                    server.end(signal.SIGKILL)
                    rest = rest_of(stream)
        assert rest.endswith(b": Redis cannot be reached\n\n")

    def test_stream_ends_before_the_service_shuts_down(self, redis, redis_server, worker, job_id, tmp_path):
        port = free_port()
        environment = {"LONGCAT_REDIS_URL": redis_server, "LONGCAT_DATA_DIR": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env={**os.environ, **environment, "LONGCAT_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        with process, ExitStack() as stack:
            stack.callback(process.terminate)
            wait_until(lambda: answers(port, "/livez"))
            streams = [stack.enter_context(connected(port, job_id)) for _ in range(3)]
            assert [stream.readline()[:3] for stream in streams] == [b"id:"] * 3
            process.terminate()
            for stream in streams:
                assert rest_of(stream).endswith(b": the service is shutting down; connect again\n\n")
            _, log = process.communicate()
        assert process.returncode == 0, log
        assert "timeout graceful shutdown" not in log


class TestSeveralJobs:
    @pytest.fixture
    def job_ids(self, live, client):
        return [client.post("/generate", json={"prompt": f"ball {n}"}).json()["id"] for n in range(2)]

    def test_one_stream_follows_several_jobs_to_their_ends(self, live, job_ids, worker):
        with watching(live, path=f"/events?jobs={job_ids[0]},{job_ids[1]},{job_ids[0]}") as told:
            assert [next(told)[2]["id"] for _ in job_ids] == job_ids
            for expected in job_ids:
                lease = worker.claim()
                assert lease.job.id == expected
                worker.succeed(lease)
            seen = list(told)
        # Both may end during one slow read of the service, and then be sent in any order.
        assert sorted(job["id"] for _, kind, job in seen if kind == "done") == sorted(job_ids)

    def test_deleted_job_does_not_end_the_stream_of_another(self, live, job_ids, worker, client):
        with watching(live, path=f"/events?jobs={job_ids[0]},{job_ids[1]}") as told:
            assert [next(told)[2]["id"] for _ in job_ids] == job_ids
            client.delete(f"/jobs/{job_ids[0]}")
            worker.succeed(worker.claim())
            seen = list(told)
        assert {job["id"] for _, _, job in seen} == {job_ids[1]}
        assert seen[-1][1] == "done"

    def test_reconnected_client_gets_the_present_state_of_each_job_first(self, live, job_ids, worker):
        path = f"/events?jobs={job_ids[0]},{job_ids[1]}"
        claim = worker.claim()
        with watching(live, path=path) as told:
            seen, _, _ = [next(told) for _ in job_ids][-1]
        worker.job_store.holder.renew_lease(claim, step(2))
        with watching(live, path=path, last_event_id=seen) as told:
            states = {job["id"]: job for _, _, job in (next(told), next(told))}
        assert states[job_ids[0]]["progress"]["step"] == 2
        assert states[job_ids[1]]["queue_position"] == 1

    def test_invalid_event_id_is_refused(self, client, job_ids):
        answer = client.get(f"/events?jobs={job_ids[0]}", headers={"Last-Event-ID": "abc"})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "Last-Event-ID")

    @pytest.mark.parametrize("change", ["delete", "claim"])
    def test_job_that_leaves_the_queue_between_two_reads_is_read_again(
        self, app, job_ids, worker, change, monkeypatch
    ):
        backend = backend_of_request(app.state.backend)
        stream = EventStream("", dict.fromkeys(job_ids, "0"))

        def show_after_change(jobs, backend):
            monkeypatch.setattr("service.jobs.events.show_all", show_all)
            worker.claim() if change == "claim" else worker.job_store.client.delete(job_ids[0])
            return show_all(jobs, backend)

        monkeypatch.setattr("service.jobs.events.show_all", show_after_change)
        states = {job.id: job.status for job in read_if_authorized(stream, backend) or []}
        expected = {job_ids[1]: "queued"} | ({job_ids[0]: "running"} if change == "claim" else {})
        assert states == expected
        assert stream.last_event_ids.keys() == expected.keys()

    def test_record_that_cannot_be_read_is_passed_over(self, app, job_ids, redis):
        redis.set(f"longcat:job:{job_ids[0]}x", "no hash")
        redis.hset(f"longcat:job:{job_ids[1]}", "status", "unknown")
        stream = EventStream("", dict.fromkeys([*job_ids, f"{job_ids[0]}x"], "0"))
        assert [
            job.id for job in read_if_authorized(stream, backend_of_request(app.state.backend)) or []
        ] == [job_ids[0]]

    def test_jobs_of_other_owners_and_too_many_jobs_are_refused(self, client, job_ids, redis):
        assert client.get(f"/events?jobs={job_ids[0]},unknown").status_code == 404
        assert client.get("/events").status_code == 422
        assert client.get("/events?jobs=" + ",".join(map(str, range(51)))).status_code == 422
        key = ApiKeys(redis).create("someone")
        answer = client.get(f"/events?jobs={job_ids[0]}", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 404
        assert (
            client.head(f"/events?jobs={job_ids[0]}", headers={"Authorization": f"Bearer {key}"}).status_code
            == 404
        )

    def test_each_watched_job_counts_as_a_stream(self, client, job_ids, app, monkeypatch):
        settings = app.state.backend.settings.model_copy(update={"owner_event_streams": 1})
        monkeypatch.setattr(app.state.backend.event_streams, "_settings", settings)
        answer = client.get(f"/events?jobs={job_ids[0]},{job_ids[1]}")
        assert (answer.status_code, answer.headers["X-Limit"]) == (429, "owner_event_streams")


class TestLimits:
    @pytest.fixture
    def limited(self, app, monkeypatch):
        """Return a function that sets limits on the event streams."""
        streams = app.state.backend.event_streams

        def limit(**bounds):
            monkeypatch.setattr(streams, "_settings", app.state.backend.settings.model_copy(update=bounds))

        return limit

    @pytest.mark.parametrize("limit", ["owner_event_streams", "total_event_streams"])
    def test_stream_over_the_limit_is_refused_until_another_ends(self, live, job_id, limited, limit):
        limited(**{limit: 2})
        with connected(live, job_id) as first:
            first.readline()
            with connected(live, job_id) as second:
                second.readline()
                with connected(live, job_id) as third:
                    assert (third.status, third.headers["X-Limit"]) == (429, limit)
                    assert int(third.headers["Retry-After"]) > 0
            wait_until(lambda: self.is_admitted(live, job_id))

    def test_limit_of_one_owner_does_not_affect_others(self, live, redis, worker, job_id, limited):
        limited(owner_event_streams=1)
        keys = ApiKeys(redis)
        order = worker.job_store.client.get(job_id).order
        for owner in ("me", "you"):
            worker.job_store.client.submit(Submission(id=owner, order=order, owner=owner))
        with connected(live, "me", keys.create("me")) as mine:
            mine.readline()
            with connected(live, "you", keys.create("you")) as yours:
                assert yours.status == 200

    @staticmethod
    def is_admitted(port, job_id):
        with connected(port, job_id) as stream:
            return stream.status == 200


class TestChangedJobs:
    def test_job_with_newer_events_is_changed_for_the_oldest_of_its_watchers(self, redis):
        ids = {job: redis.xadd(f"longcat:events:{job}", {"status": "queued"}).decode() for job in "abc"}
        newest = redis.xadd("longcat:events:b", {"status": "running"}).decode()
        seen = [("a", ids["a"]), ("b", newest), ("b", ids["b"]), ("c", "0"), ("gone", "0")]
        assert changed_jobs(redis, seen) == {"b", "c"}
        assert changed_jobs(redis, []) == set()
