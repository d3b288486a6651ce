"""Requests that are accepted: how they are resolved, what is stored, and how an input may arrive."""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import datetime
from typing import ClassVar

import httpx
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from jobs.queue import TicketQueue
from jobs.storage.keys import job_of
from service.app import create_app
from service.inputs.body import GENERATE
from service.jobs.bodies import GenerateRequest
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, LIMITS, settings_for
from tests.service.hosts import host, sending
from tests.service.media import clip, encoded, in_base64, picture, turned_clip
from tests.tickets import num_tickets
from tests.waiting import wait_until

JOB_KEYS = {
    *("id", "owner", "status", "task", "request", "progress", "queue_position", "attempt", "created_at"),
    "started_at",
    *("finished_at", "error", "result", "timings_s", "metadata", "expires_at", "waiting_for", "warnings"),
    *("gpu_s", "gpu_phases_s", "lost_gpu_s", "cost", "batch"),
    "deadline_at",
    "deadline_met",
    "predicted_finish_at",
}


def test_a_job_has_exactly_the_documented_keys(order):
    assert order().keys() == JOB_KEYS


def test_prompt_alone_gets_the_defaults_of_the_checkpoint(order):
    job = order()
    assert (job["status"], job["task"], job["queue_position"], job["attempt"]) == (
        "queued",
        "text_to_video",
        1,
        0,
    )
    resolved = job["request"]
    assert (resolved["height"], resolved["width"], resolved["num_frames"]) == (64, 96, 17)
    assert (resolved["num_inference_steps"], resolved["guidance_scale"]) == (4, LIMITS.guidance_scale)
    assert resolved["negative_prompt"] == "blurred"
    assert 0 <= resolved["seed"] < 1 << 53


def test_response_has_the_url_of_the_job(client):
    answer = client.post("/generate", json={"prompt": "a red ball"})
    assert answer.headers["Location"] == f"/jobs/{answer.json()['id']}"
    assert client.get(answer.headers["Location"]).json() == answer.json()


def test_times_are_rfc_3339_in_utc(order):
    created_at = order()["created_at"]
    assert created_at.endswith("Z")
    assert datetime.fromisoformat(created_at).tzinfo is not None


def test_response_does_not_wait_for_the_ticket(live, redis: Redis, monkeypatch):
    answered, deliver = threading.Event(), TicketQueue.enqueue

    def deliver_late(tickets: TicketQueue, job_id: str, requirement: str) -> None:
        assert answered.wait(60)
        deliver(tickets, job_id, requirement)

    monkeypatch.setattr(TicketQueue, "enqueue", deliver_late)
    answer = httpx.post(f"http://127.0.0.1:{live}/generate", json={"prompt": "a red ball"}, timeout=60)
    assert answer.status_code == 202
    answered.set()
    wait_until(lambda: num_tickets(redis) == 1)


def test_every_job_brings_a_ticket(order, redis: Redis):
    for _ in range(3):
        order()
    assert num_tickets(redis) == 3


def test_a_worker_claims_the_order_that_was_shown(order, worker):
    job = order(num_frames=9, seed=7, priority="high", metadata={"a": "b"})
    claimed = worker.claim().job
    assert claimed.id == job["id"]
    assert (claimed.order.plan.num_frames, claimed.order.seed, claimed.priority) == (9, 7, "high")
    assert claimed.metadata == {"a": "b"}


def test_seeds_differ_unless_given(order):
    assert len({order()["request"]["seed"] for _ in range(5)}) == 5
    assert order(seed=(1 << 63) - 1)["request"]["seed"] == (1 << 63) - 1


@pytest.mark.parametrize(
    ("fields", "resolved"),
    [
        ({"resolution": "large"}, {"height": 128, "width": 192}),
        ({"height": 96, "width": 64}, {"height": 96, "width": 64}),
        ({"distilled": True}, {"num_inference_steps": 2, "guidance_scale": 1.0, "negative_prompt": None}),
        ({"guidance_scale": 1}, {"guidance_scale": 1.0, "negative_prompt": None}),
        ({"negative_prompt": ""}, {"negative_prompt": ""}),
        ({"num_segments": 3}, {"num_segments": 3, "num_condition_frames": 5}),
        ({"enhance_hf": False, "condition_cache": False}, {"enhance_hf": False, "condition_cache": False}),
        ({"webhook_url": "https://example.com/hook"}, {"webhook_url": "https://example.com/hook"}),
        ({"priority": "low"}, {"priority": "low"}),
    ],
)
def test_requested_options_are_resolved(order, fields, resolved):
    assert order(**fields)["request"].items() >= resolved.items()


def test_several_prompts_make_a_long_video_of_as_many_segments(client):
    job = client.post("/generate", json={"prompts": ["one", "two", "three"]}).json()
    assert job["task"] == "long_video"
    assert (job["request"]["prompts"], job["request"]["prompt"]) == (["one", "two", "three"], None)
    assert job["request"]["num_segments"] == 3


def test_options_of_refinement_are_resolved(order):
    refinement = order(refine=True, t_thresh=0.25, spatial_refine_only=True)["request"]["refinement"]
    assert (refinement["height"], refinement["width"]) == (128, 192)
    assert (refinement["t_thresh"], refinement["spatial_only"]) == (0.25, True)


@pytest.mark.parametrize("task", ["video_continuation", "refine"])
def test_clip_is_stored_unchanged(client, worker, task):
    video = clip(17)
    body = {"task": task, "prompt": "on", "video": {"base64": in_base64(video)}}
    job = client.post("/generate", json=body).json()
    assert job["request"]["video"]["num_frames"] == 17
    assert job["request"]["video"]["sha256"] == hashlib.sha256(video).hexdigest()
    stored = worker.claim().job.order.video
    assert b"".join(worker.storage.read(stored.key)) == video


def test_refinement_may_have_a_condition_video(client, worker):
    both = {"video": {"base64": in_base64(clip(17))}, "condition_video": {"base64": in_base64(clip(9))}}
    answer = client.post("/generate", json={"task": "refine", "prompt": "on", **both})
    assert answer.json()["request"]["condition_video"]["num_frames"] == 9
    assert len(list(worker.storage.keys(f"jobs/{answer.json()['id']}/inputs/"))) == 2


def test_an_image_is_stored_upright_and_decides_the_shape(order, worker):
    standing = picture(height=96, width=64)
    job = order(image={"base64": in_base64(encoded(standing, "JPEG"))})
    assert job["task"] == "image_to_video"
    assert (job["request"]["height"], job["request"]["width"]) == (96, 64)
    stored = worker.claim().job.order.image
    assert (stored.media_type, stored.height, stored.width) == ("image/png", 96, 64)
    content = b"".join(worker.storage.read(stored.key))
    assert (len(content), hashlib.sha256(content).hexdigest()) == (stored.size_bytes, stored.sha256)


@pytest.mark.parametrize("num_videos", [1, 2])
def test_ids_of_all_jobs_are_reserved_before_an_input_is_stored(app, order, monkeypatch, num_videos):
    backend = app.state.backend
    put = backend.storage.put
    owned = []

    def observed_put(key, path, media_type):
        owned.append(backend.job_store.maintenance.owns_files(job_of(key)))
        put(key, path, media_type)

    monkeypatch.setattr(backend.storage, "put", observed_put)
    order(num_videos=num_videos, image={"base64": in_base64(encoded(picture()))})
    assert owned == [True] * num_videos


class TestBothKindsOfBody:
    FIELDS: ClassVar = {
        "task": "long_video",
        "prompts": ["[one]", "2", "true"],
        "negative_prompt": "7",
        "num_frames": 9,
        "guidance_scale": 2.5,
        "refine": True,
        "enhance_hf": False,
        "seed": 5,
        "priority": "high",
        "metadata": {"project": "a", "number": "1"},
    }

    @staticmethod
    def form(fields):
        """As `curl -F` sends it: every field a part of text, also when there is no file among them."""
        given = [
            (name, one)
            for name, value in fields.items()
            for one in (value if isinstance(value, list) else [value])
        ]
        return [(name, (None, one if isinstance(one, str) else json.dumps(one))) for name, one in given]

    def test_settle_the_same(self, client):
        from_json = client.post("/generate", json=self.FIELDS)
        from_form = client.post("/generate", files=self.form(self.FIELDS))
        assert from_json.status_code == from_form.status_code == 202
        assert from_json.json()["request"] == from_form.json()["request"]
        assert from_json.json()["metadata"] == from_form.json()["metadata"]

    def test_are_refused_alike(self, client):
        for change in (
            {"num_frames": 8},
            {"num_frames": "many"},
            {"seed": -1},
            {"surprise": 1},
            {"refine": "maybe"},
        ):
            bodies = {**self.FIELDS, **change}
            from_json = client.post("/generate", json=bodies)
            from_form = client.post("/generate", files=self.form(bodies))
            assert from_json.status_code == from_form.status_code == 422
            assert from_json.json() == from_form.json()

    def test_know_the_same_texts(self):
        """A form cannot tell a text from a number, so it has a list, which must follow the model."""
        texts = {
            name
            for name, field in GenerateRequest.model_json_schema()["properties"].items()
            if "string"
            in {field.get("type"), *(kind.get("type", "string") for kind in field.get("anyOf", ()))}
            and name not in {"image", "video", "condition_video"}
        }
        assert texts == {name for name in GENERATE.texts if "[" not in name}
        assert not GENERATE.lists & GENERATE.texts

    def test_may_have_a_source_in_a_form(self, client):
        source = json.dumps({"base64": in_base64(encoded(picture()))})
        answer = client.post("/generate", files=[("prompt", (None, "on")), ("image", (None, source))])
        assert answer.json()["task"] == "image_to_video"

    def test_may_have_a_file_field_left_empty_as_browsers_send_it(self, client):
        parts = ('name="prompt"\r\n\r\non', 'name="image"; filename=""\r\n\r\n')
        body = (
            "".join(f"--edge\r\nContent-Disposition: form-data; {part}\r\n" for part in parts)
            + "--edge--\r\n"
        )
        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
        assert client.post("/generate", content=body, headers=headers).json()["task"] == "text_to_video"


class TestAnImageByThreeWays:
    @pytest.fixture
    def image(self):
        return encoded(picture())

    def test_is_the_same_image(self, client, image):
        with host(sending(image)) as url:
            sources = [{"base64": in_base64(image)}, {"url": url}]
            jobs = [
                client.post("/generate", json={"prompt": "on", "image": source}).json() for source in sources
            ]
        upload = client.post("/generate", data={"prompt": "on"}, files={"image": ("../../etc/passwd", image)})
        data_url = {"url": f"data:image/png;base64,{in_base64(image)}"}
        jobs += [upload.json(), client.post("/generate", json={"prompt": "on", "image": data_url}).json()]
        assert [job["task"] for job in jobs] == ["image_to_video"] * 4
        assert len({job["request"]["image"]["sha256"] for job in jobs}) == 1

    def test_base64_may_have_line_breaks(self, order, image):
        wrapped = "\n".join(
            in_base64(image)[start : start + 76] for start in range(0, len(in_base64(image)), 76)
        )
        assert order(image={"base64": wrapped})["request"]["image"]["width"] == 96


def test_rotated_clip_is_continued_upright(client):
    content = turned_clip(90, clip(30, 64, 96, rate=30))
    answer = client.post("/generate", data={"prompt": "on"}, files={"video": content})
    assert answer.status_code == 202, answer.text
    request = answer.json()["request"]
    assert [request["video"][name] for name in ("height", "width", "num_frames")] == [96, 64, 15]
    assert (request["height"], request["width"]) == (96, 64)


def test_links_are_absolute_where_the_service_knows_its_address(redis, redis_server, tmp_path, worker):
    set_only_pool(redis, CAPABILITY)
    app = create_app(settings_for(redis_server, tmp_path, public_url="https://videos.example.com/"))
    with TestClient(app) as client:
        answer = client.post("/generate", json={"prompt": "a red ball"})
        assert answer.headers["Location"] == f"https://videos.example.com/jobs/{answer.json()['id']}"
        worker.succeed(worker.claim())
        result = client.get(f"/jobs/{answer.json()['id']}").json()["result"]
    assert result["video_url"] == f"https://videos.example.com/jobs/{answer.json()['id']}/video"
