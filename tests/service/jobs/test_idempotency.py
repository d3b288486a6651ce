"""A request that is sent twice makes one job, whatever happens in between."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs.errors import Unavailable
from jobs.queue import TicketQueue
from service.app import create_app
from service.jobs import submission
from tests.service.conftest import settings_for
from tests.service.hosts import host, sending
from tests.service.media import clip, encoded, picture
from tests.service.working import tidy

KEY = {"Idempotency-Key": "order-1"}


def generate(client, key="order-1", **fields: Any):
    return client.post("/generate", json={"prompt": "a red ball", **fields}, headers={"Idempotency-Key": key})


def ids(client):
    return [job["id"] for job in client.get("/jobs").json()["jobs"]]


def test_the_same_request_gives_the_same_job(client, redis):
    first, again = generate(client), generate(client)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.headers["Location"] == again.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert TicketQueue(redis).count() == 1


def test_the_job_is_shown_as_it_stands_by_then(client, worker):
    generate(client)
    worker.succeed(worker.claim())
    assert generate(client).json()["status"] == "succeeded"


def test_another_request_with_the_same_key_is_refused(client):
    made = generate(client).json()["id"]
    refused = generate(client, seed=7)
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    assert refused.json()["error"]["field"] == "Idempotency-Key"
    assert ids(client) == [made]


def test_without_a_key_every_request_is_a_job(client, order):
    assert order()["id"] != order()["id"]


def test_with_another_key_it_is_another_job(client):
    assert generate(client, "a").json()["id"] != generate(client, "b").json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "umläut".encode()])
def test_a_key_that_is_none_is_refused(client, key):
    answer = generate(client, key)
    assert answer.status_code == 422
    assert "key" in answer.json()["error"]["field"].lower()
    assert ids(client) == []


def test_how_json_is_written_does_not_count(client):
    headers = KEY | {"Content-Type": "application/json"}
    texts = ['{"prompt": "a", "seed": 7}', '{ "seed":7,\n"prompt":"\\u0061" }']
    assert len({client.post("/generate", content=text, headers=headers).json()["id"] for text in texts}) == 1


class TestForms:
    def order(self, client, image, prompt="on"):
        files = {"image": ("cat.png", image)}
        return client.post("/generate", data={"prompt": prompt}, files=files, headers=KEY)

    def test_the_same_files_give_the_same_job(self, client, worker):
        image = encoded(picture())
        assert self.order(client, image).json()["id"] == self.order(client, image).json()["id"]
        stored = worker.claim().job.order.image
        assert sum(map(len, worker.storage.read(stored.key))) == stored.size_bytes

    def test_another_file_is_another_request(self, client):
        self.order(client, encoded(picture()))
        assert self.order(client, encoded(picture(96, 64))).status_code == 422


class TestARequestThatFails:
    def test_leaves_its_key_free(self, client):
        assert generate(client, num_frames=16).status_code == 422
        assert generate(client, num_frames=17).status_code == 202

    def test_for_want_of_a_worker_leaves_its_key_free(self, no_worker_yet, redis):
        assert generate(no_worker_yet).status_code == 503
        assert not redis.keys("longcat:idempotency:*")

    def test_after_its_job_was_queued_gives_that_job(self, client, monkeypatch):
        """Redis went away after the commit, and the client was told to try again."""
        queue = submission._queue

        def interrupted(*given):
            queue(*given)
            raise Unavailable("the answer was lost")

        monkeypatch.setattr(submission, "_queue", interrupted)
        assert generate(client).status_code == 503
        monkeypatch.undo()
        answer = generate(client)
        assert answer.headers["Idempotent-Replayed"] == "true"
        assert ids(client) == [answer.json()["id"]]

    def test_because_its_process_died_does_not_hold_up_the_next(self, app, client):
        """Nobody released the key, and nothing was queued."""
        backend = app.state.backend
        generate(client)
        fingerprint = self.fingerprint(client, app)
        hold = backend.keys.hold("", "order-2", fingerprint)
        answer = generate(client, "order-2")
        assert answer.status_code == 202
        assert answer.json()["id"] == hold.job_id

    def fingerprint(self, client, app):
        (name,) = app.state.backend.redis.keys("longcat:idempotency:*")
        return app.state.backend.redis.hget(name, "fingerprint").decode()


class TestConcurrently:
    def post(self, client, bodies):
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda fields: generate(client, **fields), bodies))

    def test_the_same_requests_make_one_job(self, client, redis):
        answers = self.post(client, [{}] * 12)
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len({answer.json()["request"]["seed"] for answer in answers}) == 1
        assert len(ids(client)) == 1

    def test_different_requests_make_one_job_and_refusals(self, client):
        answers = self.post(client, [{"seed": seed} for seed in range(8)])
        assert sorted(answer.status_code for answer in answers) == [202] + [422] * 7
        assert len(ids(client)) == 1

    def test_a_url_that_changes_leaves_no_job_with_the_wrong_image(self, client, worker):
        """Both requests may be under way at once and fetch different bytes."""
        images = [encoded(picture()), encoded(picture(96, 64))]

        def answer(request):
            sending(images.pop())(request)

        with host(answer) as url:
            answers = self.post(client, [{"image": {"url": url}}] * 2)
        assert len({answer.json()["id"] for answer in answers}) == 1
        stored = worker.claim().job.order.image
        assert sum(map(len, worker.storage.read(stored.key))) == stored.size_bytes


class TestAfterwards:
    def test_a_restart_changes_nothing(self, client, redis, redis_server, tmp_path):
        made = generate(client).json()["id"]
        with TestClient(create_app(settings_for(redis_server, tmp_path))) as another:
            assert generate(another).json()["id"] == made

    def test_a_deleted_job_takes_its_key_along(self, client, redis):
        made = generate(client).json()["id"]
        client.delete(f"/jobs/{made}")
        assert not redis.keys("longcat:idempotency:*")
        assert generate(client).json()["id"] != made

    def test_an_expired_job_takes_its_key_along(self, redis, client, redis_server, tmp_path):
        app = create_app(settings_for(redis_server, tmp_path, retention_s=0.001))
        with TestClient(app) as brief:
            made = generate(brief).json()["id"]
            brief.post(f"/jobs/{made}/cancel")
            while brief.get(f"/jobs/{made}").status_code == 200:
                tidy(app.state.backend)
            assert generate(brief).json()["id"] != made

    def test_a_key_of_a_queued_job_does_not_lapse(self, client, redis):
        generate(client)
        (name,) = redis.keys("longcat:idempotency:*")
        assert redis.ttl(name) == -1


class TestOnTheOtherRoutes:
    def test_a_video_of_openais_api_is_made_once(self, client):
        answers = [client.post("/v1/videos", json={"prompt": "a"}, headers=KEY) for _ in range(2)]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert answers[1].headers["Idempotent-Replayed"] == "true"

    def test_a_form_of_it_is_made_once(self, client):
        files = {"input_reference": ("cat.png", encoded(picture()))}
        answers = [
            client.post("/v1/videos", data={"prompt": "a"}, files=files, headers=KEY) for _ in range(2)
        ]
        assert len({answer.json()["id"] for answer in answers}) == 1

    def test_an_extension_is_made_once(self, client, worker, order):
        job = order()
        worker.succeed(worker.claim(), film=clip(17))
        body = {"prompt": "on", "seconds": "1", "video": {"id": job["id"]}}
        answers = [client.post("/v1/videos/extensions", json=body, headers=KEY) for _ in range(2)]
        assert len({answer.json()["id"] for answer in answers}) == 1

    def test_a_key_is_one_for_all_routes(self, client):
        generate(client)
        answer = client.post("/v1/videos", json={"prompt": "a red ball"}, headers=KEY)
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "idempotency_key_reused"
