"""A request can take the video of a finished job, or a frame of it, as an input."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jobs.errors import OutOfMemory
from jobs.storage.base import open_storage
from jobs.store.client import JobClient
from jobs.store.job_store import JobStore
from service.app import create_app
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, Worker, settings_for
from tests.service.media import clip

NUM_FRAMES = 17
VIDEO = clip(NUM_FRAMES)


@pytest.fixture
def finished(order, worker):
    """Return a job that has made VIDEO."""
    job = order(seed=7)
    worker.succeed(worker.claim(), video=VIDEO)
    return job


def stored_input(worker, job, field):
    """Return the content of an input of a job as a worker would fetch it, and what the order says of it."""
    file = getattr(worker.job_store.client.get(job["id"]).order, field)
    return b"".join(worker.storage.read(file.key)), file


def brightness(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image).mean()


class TestVideo:
    @pytest.mark.parametrize(
        ("body", "task"),
        [
            ({}, "video_continuation"),
            ({"num_segments": 2}, "long_video"),
            ({"task": "refine"}, "refine"),
        ],
    )
    def test_is_continued_extended_and_refined(self, order, finished, worker, body, task):
        job = order(video={"job": finished["id"]}, **body)
        content, file = stored_input(worker, job, "video")
        assert (job["task"], content) == (task, VIDEO)
        assert (file.num_frames, file.height, file.width) == (NUM_FRAMES, 64, 96)
        assert job["request"]["video"]["sha256"] == hashlib.sha256(VIDEO).hexdigest()
        assert job["request"]["video"]["source_job_id"] == finished["id"]
        assert job["request"]["video"]["source_frame"] is None

    def test_conditions_a_refinement(self, order, finished, worker):
        of_finished = {"job": finished["id"]}
        job = order(task="refine", video=of_finished, condition_video=of_finished)
        assert stored_input(worker, job, "condition_video")[0] == VIDEO

    def test_has_no_frame(self, client, finished):
        video = {"job": finished["id"], "frame": 0}
        answer = client.post("/generate", json={"prompt": "a", "video": video})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "video.frame")

    def test_that_cannot_be_decoded_is_refused(self, client, order, worker):
        job = order()
        worker.succeed(worker.claim(), video=b"not a video")
        answer = client.post("/generate", json={"prompt": "a", "video": {"job": job["id"]}})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "video")


class TestFrame:
    @pytest.mark.parametrize(
        ("frame", "position"), [(None, 16), (0, 0), (5, 5), (16, 16), (-1, 16), (-3, 14), (-17, 0)]
    )
    def test_is_the_first_of_the_new_video(self, order, finished, worker, frame, position):
        job = order(image={"job": finished["id"], "frame": frame})
        content, file = stored_input(worker, job, "image")
        assert (job["task"], file.media_type, file.height, file.width) == (
            "image_to_video",
            "image/png",
            64,
            96,
        )
        assert abs(brightness(content) - position * 255 // NUM_FRAMES) < 4
        image = job["request"]["image"]
        assert (image["source_job_id"], image["source_frame"]) == (finished["id"], position)

    def test_is_known_as_such_in_a_job_that_uses_it_again(self, client, order, finished):
        job = order(image={"job": finished["id"], "frame": 3})
        again = client.post("/generate", json=job["request"]).json()
        retried = client.post(f"/jobs/{job['id']}/retry").json()
        for each in (again, retried):
            image = each["request"]["image"]
            assert (image["source_job_id"], image["source_frame"]) == (finished["id"], 3)

    @pytest.mark.parametrize("frame", [17, -18, 10**30])
    def test_beyond_the_video_is_refused(self, client, finished, frame):
        image = {"job": finished["id"], "frame": frame}
        answer = client.post("/generate", json={"prompt": "a", "image": image})
        assert answer.status_code == 422
        assert answer.json()["error"] == {
            "code": "invalid_input",
            "message": "image.frame: must be from -17 to 16 for this job",
            "field": "image.frame",
        }

    def test_that_the_file_lacks_is_refused(self, client, order, worker):
        job = order()
        worker.succeed(worker.claim(), video=clip(9))  # its result says 17
        image = {"job": job["id"], "frame": 12}
        error = client.post("/generate", json={"prompt": "a", "image": image}).json()["error"]
        assert (error["field"], error["message"]) == ("image", "image: has 9 frames, and none at 12")

    @pytest.mark.parametrize("source", [{"url": "https://example.com/a.png"}, {"job_id": "a"}])
    def test_of_something_else_than_a_job_is_refused(self, client, source):
        answer = client.post("/generate", json={"prompt": "a", "image": source | {"frame": 0}})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "image")
        assert "only with job" in answer.json()["error"]["message"]

    def test_can_be_named_in_a_form(self, client, finished, worker):
        form = {"prompt": "a", "image[job]": finished["id"], "image[frame]": "0"}
        answer = client.post("/generate", files={name: (None, text) for name, text in form.items()})
        assert answer.status_code == 202, answer.text
        assert brightness(stored_input(worker, answer.json(), "image")[0]) < 4


class TestRefusals:
    @pytest.mark.parametrize("field", ["image", "video", "condition_video"])
    def test_unknown_job_is_refused(self, client, field):
        answer = client.post("/generate", json={"prompt": "a", field: {"job": "nobody"}})
        assert answer.status_code == 422
        assert answer.json()["error"] == {
            "code": "invalid_input",
            "message": f"{field}.job: there is no such job",
            "field": f"{field}.job",
        }

    @pytest.mark.parametrize("status", ["queued", "running", "failed", "cancelled"])
    def test_job_without_a_video_is_a_conflict(self, client, order, worker, status):
        job = order()
        if status in {"running", "failed"}:
            lease = worker.claim()
        if status == "failed":
            worker.job_store.holder.fail(lease, OutOfMemory("does not fit"), {})
        if status == "cancelled":
            client.post(f"/jobs/{job['id']}/cancel")
        answer = client.post("/generate", json={"prompt": "a", "video": {"job": job["id"]}})
        assert answer.status_code == 409
        assert answer.json()["error"] == {
            "code": "job_not_ready",
            "message": f"video.job: the job is {status} and has no video",
            "field": "video.job",
        }

    @pytest.mark.parametrize(
        ("made_by", "then", "is_refused"),
        [
            ({"refine": True}, {}, True),
            ({"refine": True}, {"spatial_refine_only": True}, True),
            ({"refine": True, "spatial_refine_only": True}, {"spatial_refine_only": True}, True),
            ({"refine": True, "spatial_refine_only": True}, {}, False),
            ({}, {}, False),
        ],
    )
    def test_refined_video_is_not_refined_again(self, client, order, worker, made_by, then, is_refused):
        job = order(**made_by)
        worker.succeed(worker.claim(), video=VIDEO)
        body = {"prompt": "a", "task": "refine", "video": {"job": job["id"]}} | then
        answer = client.post("/generate", json=body)
        assert answer.status_code == (422 if is_refused else 202)
        if is_refused:
            assert answer.json()["error"]["message"] == "video.job: its video is refined already"

    def test_refined_job_is_read_once(self, client, finished, monkeypatch):
        read, get = [], JobClient.get

        def noted(jobs, job_id):
            read.append(job_id)
            return get(jobs, job_id)

        monkeypatch.setattr(JobClient, "get", noted)
        body = {"prompt": "a", "task": "refine", "video": {"job": finished["id"]}}
        assert client.post("/generate", json=body).status_code == 202
        assert read.count(finished["id"]) == 1

    def test_refinement_of_an_unfinished_job_is_refused_as_not_ready(self, client, order):
        job = order(refine=True)
        answer = client.post("/generate", json={"prompt": "a", "task": "refine", "video": {"job": job["id"]}})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_not_ready")

    def test_missing_file_is_refused(self, client, finished, worker):
        worker.storage.delete_prefix(f"jobs/{finished['id']}/")
        answer = client.post("/generate", json={"prompt": "a", "image": {"job": finished["id"]}})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_input")
        assert answer.json()["error"]["message"] == "image: the video of that job is no longer stored"

    @pytest.mark.parametrize(
        "other", [{"url": "https://example.com/a.png"}, {"base64": "AA=="}, {"job_id": "a"}, {"width": 96}]
    )
    def test_job_beside_another_source_or_facts_is_refused(self, client, finished, other):
        answer = client.post("/generate", json={"prompt": "a", "image": {"job": finished["id"]} | other})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "image")


def test_new_job_has_its_own_copy(client, order, finished, worker):
    job = order(video={"job": finished["id"]})
    assert client.delete(f"/jobs/{finished['id']}").status_code == 204
    assert stored_input(worker, job, "video")[0] == VIDEO


@pytest.mark.parametrize("field", ["image", "video"])
def test_request_can_be_sent_again_after_its_source_is_deleted(client, order, finished, worker, field):
    job = order(**{field: {"job": finished["id"]}})
    client.delete(f"/jobs/{finished['id']}")
    answers = [
        client.post("/generate", json=job["request"]),
        client.post(f"/jobs/{job['id']}/retry"),
    ]
    for answer in answers:
        assert answer.status_code == 202, answer.text
        assert stored_input(worker, answer.json(), field)[0] == stored_input(worker, job, field)[0]


def test_retry_may_change_the_input_to_a_frame_of_a_job(client, order, finished, worker):
    changes = {"task": None, "video": None, "image": {"job": finished["id"], "frame": 0}}
    continued = order(video={"job": finished["id"]})
    answer = client.post(f"/jobs/{continued['id']}/retry", json=changes | {"num_condition_frames": None})
    assert (answer.status_code, answer.json()["task"]) == (202, "image_to_video")


def test_repeated_request_returns_its_job_after_the_source_is_deleted(client, finished):
    body, key = {"prompt": "on", "video": {"job": finished["id"]}}, {"Idempotency-Key": "once"}
    first = client.post("/generate", json=body, headers=key)
    client.delete(f"/jobs/{finished['id']}")
    second = client.post("/generate", json=body, headers=key)
    assert second.json()["id"] == first.json()["id"]


@pytest.mark.parametrize(
    "limit",
    [{"max_video_bytes": len(VIDEO) - 1}, {"max_video_frames": NUM_FRAMES - 1}, {"max_video_pixels": 1000}],
)
def test_limits_of_uploads_do_not_apply_to_videos_of_jobs(redis_server, redis, tmp_path, limit):
    settings = settings_for(redis_server, tmp_path / "data", **limit)
    with TestClient(create_app(settings)) as client:
        set_only_pool(redis, CAPABILITY)
        job = client.post("/generate", json={"prompt": "x"}).json()
        worker = Worker(JobStore(redis), open_storage(settings), tmp_path)
        worker.succeed(worker.claim(), video=VIDEO)
        for field in ("image", "video"):
            answer = client.post("/generate", json={"prompt": "x", field: {"job": job["id"]}})
            assert answer.status_code == 202, answer.text
            again = client.post("/generate", json=answer.json()["request"])
            assert again.status_code == 202, again.text
        uploaded = client.post("/generate", data={"prompt": "x"}, files={"video": VIDEO})
        assert (uploaded.status_code, uploaded.json()["error"]["field"]) == (422, "video")


def test_video_that_is_too_long_to_be_refined_is_refused_with_its_length(client, order, worker):
    job = order(num_segments=2)
    worker.succeed(worker.claim(), video=clip(34))
    body = {"prompt": "x", "task": "refine", "video": {"job": job["id"]}}
    error = client.post("/generate", json=body).json()["error"]
    assert error["message"] == "video: must have at most 33 frames to be refined, and has 34"


def test_job_of_another_owner_does_not_exist(redis_server, redis, tmp_path):
    settings = settings_for(redis_server, tmp_path / "data")
    app = create_app(settings)
    with TestClient(app) as client:
        set_only_pool(redis, CAPABILITY)
        keys = app.state.backend.authenticator.keys
        alice, mallory = ({"Authorization": f"Bearer {keys.create(name)}"} for name in ("alice", "mallory"))
        job = client.post("/generate", json={"prompt": "x"}, headers=alice).json()
        body = {"prompt": "x", "image": {"job": job["id"]}}
        unfinished = client.post("/generate", json=body, headers=mallory)
        worker = Worker(JobStore(redis), open_storage(settings), tmp_path)
        worker.succeed(worker.claim(), video=VIDEO)
        unknown = client.post("/generate", json=body | {"image": {"job": "nobody"}}, headers=mallory)
        finished = client.post("/generate", json=body, headers=mallory)
        assert unfinished.status_code == 422
        assert unfinished.json() == finished.json() == unknown.json()
        assert client.post("/generate", json=body, headers=alice).status_code == 202


def test_video_is_read_from_s3(redis_server, redis, s3_bucket, tmp_path):
    server = s3_bucket.server
    settings = settings_for(
        redis_server,
        tmp_path / "data",
        storage=s3_bucket.url,
        s3_endpoint_url=server.endpoint_url,
        s3_region=server.region,
        s3_access_key_id=server.access_key_id,
        s3_secret_access_key=server.secret_access_key,
    )
    with TestClient(create_app(settings)) as client:
        set_only_pool(redis, CAPABILITY)
        worker = Worker(JobStore(redis), open_storage(settings), tmp_path)
        finished = client.post("/generate", json={"prompt": "x"}).json()
        worker.succeed(worker.claim(), video=VIDEO)
        body = {"prompt": "x", "video": {"job": finished["id"]}}
        continued = client.post("/generate", json=body).json()
        assert stored_input(worker, continued, "video")[0] == VIDEO
        worker.storage.delete_prefix(f"jobs/{finished['id']}/")
        assert client.post("/generate", json=body).json()["error"]["field"] == "video"
