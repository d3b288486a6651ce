"""Requests with an `Idempotency-Key` create one job, however often they are sent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs.errors import Unavailable
from service.app import create_app
from tests.service.conftest import settings_for
from tests.service.hosts import host, sending
from tests.service.media import clip, encoded, picture
from tests.service.working import tidy
from tests.tickets import num_tickets

KEY = {"Idempotency-Key": "order-1"}


def generate(client, key="order-1", **fields: Any):
    return client.post("/generate", json={"prompt": "a red ball", **fields}, headers={"Idempotency-Key": key})


def ids(client):
    return [job["id"] for job in client.get("/jobs").json()["jobs"]]


def test_repeated_request_returns_the_same_job(client, redis):
    first, again = generate(client), generate(client)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.headers["Location"] == again.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert num_tickets(redis) == 1


def test_repeated_request_returns_the_current_state_of_the_job(client, worker):
    generate(client)
    worker.succeed(worker.claim())
    assert generate(client).json()["status"] == "succeeded"


def test_key_used_for_another_request_is_refused(client):
    made = generate(client).json()["id"]
    refused = generate(client, seed=7)
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    assert refused.json()["error"]["field"] == "Idempotency-Key"
    assert ids(client) == [made]


def test_requests_without_a_key_create_a_job_each(client, order):
    assert order()["id"] != order()["id"]


def test_another_key_creates_another_job(client):
    assert generate(client, "a").json()["id"] != generate(client, "b").json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "umläut".encode()])
def test_invalid_key_is_refused(client, key):
    answer = generate(client, key)
    assert answer.status_code == 422
    assert "key" in answer.json()["error"]["field"].lower()
    assert ids(client) == []


@pytest.mark.parametrize("keys", [("a", "b"), ("a", "a")])
@pytest.mark.parametrize("path", ["/generate", "/jobs/any/retry", "/v1/videos", "/v1/videos/extensions"])
def test_two_keys_are_refused(client, path, keys):
    headers = [("Idempotency-Key", key) for key in keys]
    answer = client.post(path, json={"prompt": "a red ball"}, headers=headers)
    is_openai = path.startswith("/v1/")
    assert answer.status_code == (400 if is_openai else 422)
    assert answer.json()["error"]["param" if is_openai else "field"] == "Idempotency-Key"
    assert ids(client) == []


def test_formatting_of_json_does_not_matter(client):
    headers = KEY | {"Content-Type": "application/json"}
    texts = ['{"prompt": "a", "seed": 7}', '{ "seed":7,\n"prompt":"\\u0061" }']
    assert len({client.post("/generate", content=text, headers=headers).json()["id"] for text in texts}) == 1


class TestForms:
    def order(self, client, image, prompt="on"):
        files = {"image": ("cat.png", image)}
        return client.post("/generate", data={"prompt": prompt}, files=files, headers=KEY)

    def test_same_files_return_the_same_job(self, client, worker):
        image = encoded(picture())
        assert self.order(client, image).json()["id"] == self.order(client, image).json()["id"]
        stored = worker.claim().job.order.image
        assert sum(map(len, worker.storage.read(stored.key))) == stored.size_bytes

    def test_another_file_is_another_request(self, client):
        self.order(client, encoded(picture()))
        assert self.order(client, encoded(picture(96, 64))).status_code == 422


class TestFailedRequest:
    def test_refused_request_leaves_its_key_free(self, client):
        assert generate(client, num_frames=16).status_code == 422
        assert generate(client, num_frames=17).status_code == 202

    def test_request_without_a_worker_leaves_its_key_free(self, no_worker_yet, redis):
        assert generate(no_worker_yet).status_code == 503
        assert not redis.keys("longcat:idempotency:*")

    def test_request_that_failed_after_queueing_returns_its_job(self, app, client, monkeypatch):
        """Redis fails after the job was queued, so the client is told to retry."""
        jobs = app.state.backend.job_store.client
        submit = jobs.submit

        def interrupted(submission):
            submit(submission)
            raise Unavailable("the answer was lost")

        monkeypatch.setattr(jobs, "submit", interrupted)
        assert generate(client).status_code == 503
        monkeypatch.undo()
        answer = generate(client)
        assert answer.headers["Idempotent-Replayed"] == "true"
        assert ids(client) == [answer.json()["id"]]

    def test_key_of_a_process_that_died_can_be_used_again(self, app, client):
        """A process that died has neither released the key nor queued a job."""
        backend = app.state.backend
        generate(client)
        fingerprint = self.fingerprint(client, app)
        reservation = backend.idempotency_keys.reserve("", "order-2", fingerprint)
        answer = generate(client, "order-2")
        assert answer.status_code == 202
        assert answer.json()["id"] == reservation.job_id

    def fingerprint(self, client, app):
        (name,) = app.state.backend.redis.keys("longcat:idempotency:*")
        return app.state.backend.redis.hget(name, "fingerprint").decode()


class TestConcurrentRequests:
    def post(self, client, bodies):
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda fields: generate(client, **fields), bodies))

    def test_same_requests_create_one_job(self, client, redis):
        answers = self.post(client, [{}] * 12)
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len({answer.json()["request"]["seed"] for answer in answers}) == 1
        assert len(ids(client)) == 1

    def test_all_responses_but_one_say_that_they_are_repeated(self, client):
        answers = self.post(client, [{}] * 80)
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert [answer.headers.get("Idempotent-Replayed") for answer in answers].count("true") == 79

    def test_response_to_the_slower_of_two_requests_says_that_it_is_repeated(self, app, client, monkeypatch):
        """Let both requests reserve the key before one of them is submitted."""
        jobs, both_reserved = app.state.backend.job_store.client, threading.Barrier(2)
        submit = jobs.submit

        def submit_late(submission):
            both_reserved.wait(30)
            return submit(submission)

        monkeypatch.setattr(jobs, "submit", submit_late)
        headers = [answer.headers.get("Idempotent-Replayed") for answer in self.post(client, [{}] * 2)]
        assert sorted(headers, key=str) == [None, "true"]

    def test_different_requests_create_one_job_and_refuse_the_rest(self, client):
        answers = self.post(client, [{"seed": seed} for seed in range(8)])
        assert sorted(answer.status_code for answer in answers) == [202] + [422] * 7
        assert len(ids(client)) == 1

    def test_changed_content_of_a_url_creates_no_job_with_the_wrong_image(self, client, worker):
        """Two concurrent requests fetch different content from the same URL."""
        images = [encoded(picture()), encoded(picture(96, 64))]

        def answer(request):
            sending(images.pop())(request)

        with host(answer) as url:
            answers = self.post(client, [{"image": {"url": url}}] * 2)
        assert len({answer.json()["id"] for answer in answers}) == 1
        stored = worker.claim().job.order.image
        assert sum(map(len, worker.storage.read(stored.key))) == stored.size_bytes


class TestLifetimeOfKeys:
    def test_key_survives_a_restart(self, client, redis, redis_server, tmp_path):
        made = generate(client).json()["id"]
        with TestClient(create_app(settings_for(redis_server, tmp_path))) as another:
            assert generate(another).json()["id"] == made

    def test_deleting_the_job_frees_its_key(self, client, redis):
        made = generate(client).json()["id"]
        client.delete(f"/jobs/{made}")
        assert not redis.keys("longcat:idempotency:*")
        assert generate(client).json()["id"] != made

    def test_expiry_of_the_job_frees_its_key(self, redis, client, redis_server, tmp_path):
        app = create_app(settings_for(redis_server, tmp_path, retention_s=0.001))
        with TestClient(app) as brief:
            made = generate(brief).json()["id"]
            brief.post(f"/jobs/{made}/cancel")
            while brief.get(f"/jobs/{made}").status_code == 200:
                tidy(app.state.backend)
            assert generate(brief).json()["id"] != made

    def test_key_of_a_queued_job_does_not_expire(self, client, redis):
        generate(client)
        (name,) = redis.keys("longcat:idempotency:*")
        assert redis.ttl(name) == -1


class TestOtherRoutes:
    def test_openai_video_is_created_once(self, client):
        answers = [client.post("/v1/videos", json={"prompt": "a"}, headers=KEY) for _ in range(2)]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert answers[1].headers["Idempotent-Replayed"] == "true"

    def test_openai_video_from_a_form_is_created_once(self, client):
        files = {"input_reference": ("cat.png", encoded(picture()))}
        answers = [
            client.post("/v1/videos", data={"prompt": "a"}, files=files, headers=KEY) for _ in range(2)
        ]
        assert len({answer.json()["id"] for answer in answers}) == 1

    def test_extension_is_created_once(self, client, worker, order):
        job = order()
        worker.succeed(worker.claim(), video=clip(17))
        body = {"prompt": "on", "seconds": "1", "video": {"id": job["id"]}}
        answers = [client.post("/v1/videos/extensions", json=body, headers=KEY) for _ in range(2)]
        assert len({answer.json()["id"] for answer in answers}) == 1

    def test_key_used_on_another_route_is_refused(self, client):
        generate(client)
        answer = client.post("/v1/videos", json={"prompt": "a red ball"}, headers=KEY)
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "idempotency_key_reused"
