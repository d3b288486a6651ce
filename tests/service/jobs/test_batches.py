"""One request can order several videos: a batch of jobs, accepted, listed and cancelled together."""

from __future__ import annotations

import hashlib

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.jobs.bodies import MAX_VIDEOS
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.media import clip, encoded, in_base64, picture
from tests.service.working import tidy
from tests.tickets import num_tickets

IMAGE = {"base64": in_base64(encoded(picture()))}
MAX_SEED = (1 << 63) - 1


@pytest.fixture
def batch(client, order):
    """Return the jobs of a batch of three."""
    job = order(num_videos=3, seed=7, metadata={"a": "b"})
    return [client.get(f"/jobs/{job_id}").json() for job_id in job["batch"]["job_ids"]]


def listed(client, **query):
    return [job["id"] for job in client.get("/jobs", params=query).json()["jobs"]]


class TestSubmission:
    def test_response_is_the_first_job_and_names_all(self, client, batch):
        answer = client.post("/generate", json={"prompt": "x", "num_videos": 2})
        job = answer.json()
        assert (answer.status_code, answer.headers["Location"]) == (202, f"/jobs/{job['id']}")
        assert job["batch"]["job_ids"][0] == job["id"]
        assert len(set(job["batch"]["job_ids"])) == 2
        assert job["batch"]["id"] != batch[0]["batch"]["id"]

    def test_jobs_differ_in_their_seeds_only(self, batch):
        assert [job["request"]["seed"] for job in batch] == [7, 8, 9]
        assert [job["request"] | {"seed": 7} for job in batch] == [batch[0]["request"]] * 3
        assert [(job["batch"], job["metadata"]) for job in batch] == [(batch[0]["batch"], {"a": "b"})] * 3

    def test_random_seeds_follow_each_other(self, client, order):
        jobs = [client.get(f"/jobs/{name}").json() for name in order(num_videos=3)["batch"]["job_ids"]]
        first = jobs[0]["request"]["seed"]
        assert [job["request"]["seed"] for job in jobs] == [first, first + 1, first + 2]

    @pytest.mark.parametrize("fields", [{}, {"num_videos": 1}, {"num_videos": None}])
    def test_single_job_has_no_batch(self, client, order, fields):
        job = order(**fields)
        assert job["batch"] is None
        assert listed(client) == [job["id"]]

    def test_workers_claim_the_jobs_one_by_one(self, batch, worker):
        assert [worker.claim().job.order.seed for _ in batch] == [7, 8, 9]

    def test_every_job_brings_a_ticket(self, batch, redis):
        assert num_tickets(redis) == 3

    def test_form_may_order_several(self, client):
        answer = client.post("/generate", data={"prompt": "x", "num_videos": "2"}, files={"image": b""})
        assert answer.status_code == 422
        answer = client.post("/generate", files={"prompt": (None, "x"), "num_videos": (None, "2")})
        assert len(answer.json()["batch"]["job_ids"]) == 2

    def test_wait_is_for_the_first_job(self, client):
        answer = client.post("/generate?wait=0.1", json={"prompt": "x", "num_videos": 2})
        assert (answer.status_code, answer.json()["batch"]["job_ids"][0]) == (202, answer.json()["id"])

    @pytest.mark.parametrize("number", [0, -1, MAX_VIDEOS + 1, 1.5, "2", True])
    def test_impossible_number_is_refused(self, client, number):
        answer = client.post("/generate", json={"prompt": "x", "num_videos": number})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "num_videos")

    def test_largest_number_is_accepted(self, client, order):
        assert len(listed(client, batch=order(num_videos=MAX_VIDEOS)["batch"]["id"])) == MAX_VIDEOS

    def test_seeds_beyond_the_largest_are_refused(self, client, order):
        answer = client.post("/generate", json={"prompt": "x", "num_videos": 2, "seed": MAX_SEED})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "seed")
        assert str(MAX_SEED - 1) in answer.json()["error"]["message"]
        assert order(num_videos=2, seed=MAX_SEED - 1)["request"]["seed"] == MAX_SEED - 1

    def test_prediction_of_several_is_refused(self, client):
        body = {"prompt": "x", "num_videos": 2, "deadline_s": 60, "refuse_if_late": True}
        answer = client.post("/generate", json=body)
        assert answer.status_code == 422
        assert "num_videos: must be 1 with refuse_if_late" in answer.json()["error"]["message"]
        assert client.post("/generate", json=body | {"refuse_if_late": False}).status_code == 202

    def test_retry_may_order_several(self, client, order):
        job = order(seed=5, image=IMAGE)
        answer = client.post(f"/jobs/{job['id']}/retry", json={"num_videos": 2})
        assert (answer.status_code, len(answer.json()["batch"]["job_ids"])) == (202, 2)

    def test_retry_and_repeated_request_of_one_job_make_one_job(self, client, batch):
        answers = [
            client.post(f"/jobs/{batch[1]['id']}/retry"),
            client.post("/generate", json=batch[1]["request"]),
        ]
        for answer in answers:
            assert (answer.json()["batch"], answer.json()["request"]["seed"]) == (None, 8)


class TestInputs:
    def test_each_job_has_its_own_copy(self, client, order, worker):
        job_ids = order(num_videos=3, image=IMAGE)["batch"]["job_ids"]
        jobs = [worker.job_store.client.get(job_id) for job_id in job_ids]
        assert [job.order.image.key.split("/")[1] for job in jobs] == job_ids
        client.delete(f"/jobs/{job_ids[0]}")
        for job in jobs[1:]:
            content = b"".join(worker.storage.read(job.order.image.key))
            assert hashlib.sha256(content).hexdigest() == job.order.image.sha256
            assert client.get(f"/jobs/{job.id}").json()["request"]["image"]["job_id"] == job.id

    def test_video_of_a_job_is_continued_several_times(self, client, order, worker):
        finished = order()
        worker.succeed(worker.claim(), video=clip(17))
        job = order(num_videos=2, video={"job": finished["id"]})
        tasks = [client.get(f"/jobs/{name}").json()["task"] for name in job["batch"]["job_ids"]]
        assert tasks == ["video_continuation"] * 2

    def test_all_reservations_are_renewed_once_for_each_file(self, client, order, redis):
        order(num_videos=2, image=IMAGE)  # loads the scripts
        redis.config_resetstat()
        order(num_videos=MAX_VIDEOS, image=IMAGE)
        # besides the files: the rate, the idempotency key, the limits, the submission and the queue estimate
        assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] < MAX_VIDEOS + 15

    def test_nothing_is_left_when_the_jobs_are_deleted(self, client, order, worker, app, redis):
        job_ids = order(num_videos=2, image=IMAGE)["batch"]["job_ids"]
        for job_id in job_ids:
            assert client.delete(f"/jobs/{job_id}").status_code == 204
        tidy(app.state.backend)
        assert [list(worker.storage.keys(f"jobs/{job_id}/")) for job_id in job_ids] == [[], []]
        assert redis.keys("longcat:index:batch:*") == []


class TestIdempotency:
    def test_repeated_request_returns_the_same_batch(self, client, redis):
        body, key = {"prompt": "x", "num_videos": 3}, {"Idempotency-Key": "once"}
        first, second = (client.post("/generate", json=body, headers=key) for _ in range(2))
        assert second.json()["batch"] == first.json()["batch"]
        assert second.headers["Idempotent-Replayed"] == "true"
        assert len(listed(client)) == 3

    def test_batch_is_not_created_again_while_one_of_its_jobs_exists(self, client):
        body, key = {"prompt": "x", "num_videos": 2}, {"Idempotency-Key": "once"}
        first, second = client.post("/generate", json=body, headers=key).json()["batch"]["job_ids"]
        client.delete(f"/jobs/{first}")
        answer = client.post("/generate", json=body, headers=key)
        assert (answer.json()["id"], answer.headers["Idempotent-Replayed"]) == (second, "true")
        client.delete(f"/jobs/{second}")
        answer = client.post("/generate", json=body, headers=key)
        assert "Idempotent-Replayed" not in answer.headers
        assert answer.json()["id"] not in {first, second}

    def test_another_number_is_another_request(self, client):
        key = {"Idempotency-Key": "once"}
        client.post("/generate", json={"prompt": "x", "num_videos": 3}, headers=key)
        answer = client.post("/generate", json={"prompt": "x", "num_videos": 2}, headers=key)
        assert answer.json()["error"]["code"] == "idempotency_key_reused"


class TestList:
    def test_filter_returns_the_jobs_of_the_batch(self, client, order, batch):
        order(num_videos=2)
        order()
        assert listed(client, batch=batch[0]["batch"]["id"]) == [job["id"] for job in reversed(batch)]
        assert listed(client, batch="no-such-batch") == []

    def test_filter_can_be_combined(self, client, batch, worker):
        name = batch[0]["batch"]["id"]
        worker.succeed(worker.claim())
        assert listed(client, batch=name, status="succeeded") == [batch[0]["id"]]
        assert listed(client, batch=name, status="queued", task="text_to_video") == [
            batch[2]["id"],
            batch[1]["id"],
        ]
        assert listed(client, batch=name, task="refine") == []

    def test_pages_lead_through_a_batch(self, client, batch):
        name = batch[0]["batch"]["id"]
        page = client.get("/jobs", params={"batch": name, "limit": 2}).json()
        last = client.get("/jobs", params={"batch": name, "limit": 2, "after": page["next"]}).json()
        assert [job["id"] for job in page["jobs"] + last["jobs"]] == [job["id"] for job in reversed(batch)]
        assert last["next"] is None


class TestCancel:
    def test_cancels_what_has_not_ended(self, client, order, batch, worker):
        other = order()
        worker.succeed(worker.claim())
        running = worker.claim()
        url = f"/batches/{batch[0]['batch']['id']}/cancel"
        answer = client.post(url)
        assert answer.status_code == 200
        assert [job["id"] for job in answer.json()["jobs"]] == [job["id"] for job in batch]
        assert [job["status"] for job in answer.json()["jobs"]] == ["succeeded", "running", "cancelled"]
        worker.job_store.holder.confirm_cancel(running)
        statuses = [job["status"] for job in client.post(url).json()["jobs"]]
        assert statuses == ["succeeded", "cancelled", "cancelled"]
        assert client.get(f"/jobs/{other['id']}").json()["status"] == "queued"

    def test_deleted_jobs_are_left_out(self, client, batch):
        client.delete(f"/jobs/{batch[0]['id']}")
        answer = client.post(f"/batches/{batch[0]['batch']['id']}/cancel")
        assert [job["id"] for job in answer.json()["jobs"]] == [job["id"] for job in batch[1:]]

    def test_unknown_batch_is_answered_404(self, client):
        answer = client.post("/batches/nothing/cancel")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


def test_limits_count_all_jobs_and_accept_all_or_none(redis_server, redis, tmp_path):
    settings = settings_for(redis_server, tmp_path, owner_queued_jobs=3)
    with TestClient(create_app(settings)) as client:
        set_only_pool(redis, CAPABILITY)
        client.post("/generate", json={"prompt": "x"})
        answer = client.post("/generate", json={"prompt": "x", "num_videos": 3})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "limit_reached")
        assert len(listed(client)) == 1
        assert client.post("/generate", json={"prompt": "x", "num_videos": 2}).status_code == 202
        assert len(listed(client)) == 3


def test_inputs_of_a_refused_batch_are_not_stored(redis_server, redis, tmp_path, monkeypatch):
    app = create_app(settings_for(redis_server, tmp_path, owner_queued_jobs=3))
    stored = []
    with TestClient(app) as client:
        set_only_pool(redis, CAPABILITY)
        monkeypatch.setattr(app.state.backend.storage, "put", lambda key, *_: stored.append(key))
        request = {"prompt": "x", "image": IMAGE, "num_videos": 4}
        assert client.post("/generate", json=request).status_code == 429
        assert stored == []
        assert client.post("/generate", json=request | {"num_videos": 3}).status_code == 202
        assert len(stored) == 3


def test_batch_of_another_owner_does_not_exist(redis_server, redis, tmp_path):
    app = create_app(settings_for(redis_server, tmp_path))
    with TestClient(app) as client:
        set_only_pool(redis, CAPABILITY)
        keys = app.state.backend.authenticator.keys
        alice, mallory = ({"Authorization": f"Bearer {keys.create(name)}"} for name in ("alice", "mallory"))
        job = client.post("/generate", json={"prompt": "x", "num_videos": 2}, headers=alice).json()
        name = job["batch"]["id"]
        assert client.get("/jobs", params={"batch": name}, headers=mallory).json()["jobs"] == []
        assert client.post(f"/batches/{name}/cancel", headers=mallory).status_code == 404
        assert client.get(f"/jobs/{job['id']}", headers=alice).json()["status"] == "queued"
        assert len(client.get("/jobs", params={"batch": name}, headers=alice).json()["jobs"]) == 2
        assert client.post(f"/batches/{name}/cancel", headers=alice).status_code == 200
