"""A request can be repeated: by sending what the job shows, or with `POST /jobs/{id}/retry`."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.jobs.bodies import GenerateRequest
from service.openai.bodies import ExtensionRequest, VideoRequest
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.media import clip, encoded, in_base64, picture
from tests.waiting import wait_until

IMAGE = {"base64": in_base64(encoded(picture()))}
CLIP = {"base64": in_base64(clip(17))}
SHORT_CLIP = {"base64": in_base64(clip(9))}
REQUESTS = {
    "text": {},
    "all options": {
        "seed": 7,
        "num_frames": 9,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "negative_prompt": "",
        "condition_cache": False,
        "enhance_hf": False,
        "priority": "low",
        "deadline_s": 90.5,
        "model": "LongCat-Video",
        "webhook_url": "https://example.com/hook",
        "webhook_events": ["failed"],
    },
    "webhook with all events": {"webhook_url": "https://example.com/hook"},
    "distilled": {"distilled": True},
    "refined": {"refine": True},
    "refined in size only": {"refine": True, "t_thresh": 0.25, "spatial_refine_only": True},
    "image": {"image": IMAGE},
    "refined image": {"image": IMAGE, "refine": True},
    "clip": {"video": CLIP},
    "segments": {"prompt": None, "prompts": ["one", "two"], "num_condition_frames": 9},
    "long video from a clip": {"video": CLIP, "num_segments": 2},
    "refinement": {"task": "refine", "video": CLIP, "num_inference_steps": 3},
    "refinement with an image": {"task": "refine", "video": CLIP, "image": IMAGE},
    "refinement with a clip": {"task": "refine", "video": CLIP, "condition_video": SHORT_CLIP},
}


def without_job_ids(job):
    """Return the request of a job in a form that does not depend on the job."""
    shown = dict(job["request"])
    for name in ("image", "video", "condition_video"):
        shown[name] = shown[name] and {key: shown[name][key] for key in shown[name] if key != "job_id"}
    return shown


@pytest.mark.parametrize("body", REQUESTS.values(), ids=REQUESTS.keys())
class TestSameRequest:
    def test_shown_request_can_be_sent_again(self, client, order, body):
        job = order(**body)
        answer = client.post("/generate", json=job["request"])
        assert answer.status_code == 202, answer.text
        assert answer.json()["id"] != job["id"]
        assert without_job_ids(answer.json()) == without_job_ids(job)

    def test_retry_makes_the_same_request(self, client, order, body):
        job = order(metadata={"a": "b"}, **body)
        answer = client.post(f"/jobs/{job['id']}/retry")
        assert answer.status_code == 202, answer.text
        retried = answer.json()
        assert retried["id"] != job["id"]
        assert answer.headers["Location"] == f"/jobs/{retried['id']}"
        assert without_job_ids(retried) == without_job_ids(job)
        assert retried["metadata"] == {"a": "b"}


class TestChanges:
    def test_changed_fields_replace_those_of_the_job(self, client, order):
        job = order(seed=7, image=IMAGE)
        changed = client.post(f"/jobs/{job['id']}/retry", json={"prompt": "a blue ball", "seed": 8}).json()
        assert without_job_ids(changed) == without_job_ids(job) | {"prompt": "a blue ball", "seed": 8}

    def test_null_gives_a_field_its_default(self, client, order):
        job = order(image=IMAGE, num_inference_steps=3, metadata={"a": "b"})
        changes = {"task": None, "image": None, "num_inference_steps": None, "metadata": None}
        changed = client.post(f"/jobs/{job['id']}/retry", json=changes).json()
        assert (changed["task"], changed["request"]["image"]) == ("text_to_video", None)
        assert (changed["request"]["num_inference_steps"], changed["metadata"]) == (4, {})

    @pytest.mark.parametrize(
        ("body", "changes", "shown"),
        [
            ({"prompts": ["a", "b"], "prompt": None}, {"prompt": "one"}, {"prompt": "one", "prompts": None}),
            ({"height": 96, "width": 64}, {"resolution": "large"}, {"height": 128, "width": 192}),
            ({"refine": True}, {"t_thresh": 0.25}, {"t_thresh": 0.25}),
            ({"refine": True}, {"refine": False, "t_thresh": None}, {"refinement": None}),
            ({"task": "refine", "video": CLIP}, {"video": SHORT_CLIP}, {"num_frames": 9}),
            (
                {"task": "refine", "video": CLIP},
                {"condition_video": SHORT_CLIP},
                {"num_condition_frames": 5},
            ),
        ],
    )
    def test_what_a_change_replaces_is_left_out(self, client, order, body, changes, shown):
        answer = client.post(f"/jobs/{order(**body)['id']}/retry", json=changes)
        assert answer.status_code == 202, answer.text
        assert {name: answer.json()["request"][name] for name in shown} == shown

    def test_form_may_bring_another_file(self, client, order):
        job = order(image=IMAGE)
        other = encoded(picture(96, 64))
        changed = client.post(f"/jobs/{job['id']}/retry", files={"image": ("other.png", other)}).json()
        assert (changed["request"]["image"]["height"], changed["request"]["seed"]) == (
            96,
            job["request"]["seed"],
        )

    @pytest.mark.parametrize(
        ("changes", "field"),
        [({"state": "failed"}, "state"), ({"num_frames": 16}, "num_frames"), ({"id": None}, "id")],
    )
    def test_invalid_changes_are_refused(self, client, order, changes, field):
        answer = client.post(f"/jobs/{order()['id']}/retry", json=changes)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)

    def test_retry_with_an_idempotency_key_creates_one_job(self, client, order):
        url, key = f"/jobs/{order()['id']}/retry", {"Idempotency-Key": "again"}
        first, second = (client.post(url, headers=key) for _ in range(2))
        assert first.json()["id"] == second.json()["id"]
        assert second.headers["Idempotent-Replayed"] == "true"
        other = client.post(url, headers=key, json={"seed": 1})
        assert other.json()["error"]["code"] == "idempotency_key_reused"


class TestDeletedJob:
    """The job of a retry was deleted after the retry."""

    KEY: ClassVar = {"Idempotency-Key": "again"}

    def retry(self, client, job_id, headers=None, **options):
        return client.post(f"/jobs/{job_id}/retry", headers=headers, **options)

    @pytest.mark.parametrize("options", [{}, {"json": {"seed": 8}}], ids=["as it was", "with changes"])
    def test_repeated_retry_returns_its_job(self, client, order, options):
        job_id = order(seed=7)["id"]
        retried = self.retry(client, job_id, self.KEY, **options)
        client.delete(f"/jobs/{job_id}")
        again = self.retry(client, job_id, self.KEY, **options)
        assert (again.status_code, again.headers.get("Idempotent-Replayed")) == (202, "true"), again.text
        assert again.json()["id"] == retried.json()["id"]
        assert again.headers["Location"] == retried.headers["Location"]

    def test_key_of_other_changes_is_refused(self, client, order):
        job_id = order(seed=7)["id"]
        self.retry(client, job_id, self.KEY)
        client.delete(f"/jobs/{job_id}")
        answer = self.retry(client, job_id, self.KEY, json={"seed": 8})
        assert answer.json()["error"]["code"] == "idempotency_key_reused"

    @pytest.mark.parametrize("headers", [None, KEY], ids=["without a key", "with a new key"])
    def test_new_retry_is_not_found(self, client, redis, order, headers):
        job_id = order()["id"]
        client.delete(f"/jobs/{job_id}")
        answer = self.retry(client, job_id, headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
        assert not redis.keys("longcat:idempotency:*")

    def test_unknown_job_is_not_found_before_a_body_is_read(self, client):
        answer = self.retry(client, "nobody", content=b"{", headers={"Content-Type": "application/json"})
        assert answer.status_code == 404


class TestStoredInputs:
    def test_new_job_has_its_own_copy(self, client, order, worker):
        job = order(image=IMAGE)
        retried = client.post(f"/jobs/{job['id']}/retry").json()
        assert client.delete(f"/jobs/{job['id']}").status_code == 204
        image = worker.job_store.client.get(retried["id"]).order.image
        content = b"".join(worker.storage.read(image.key))
        assert hashlib.sha256(content).hexdigest() == image.sha256 == job["request"]["image"]["sha256"]

    def test_input_of_an_ended_job_is_used_again(self, client, order, worker):
        job = order(video=CLIP)
        worker.succeed(worker.claim())
        wait_until(lambda: client.get(f"/jobs/{job['id']}").json()["status"] == "succeeded")
        assert client.post(f"/jobs/{job['id']}/retry").status_code == 202

    def test_missing_file_is_refused(self, client, order, worker):
        job = order(image=IMAGE)
        worker.storage.delete_prefix(f"jobs/{job['id']}/inputs/")
        for answer in (
            client.post(f"/jobs/{job['id']}/retry"),
            client.post("/generate", json=job["request"]),
        ):
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["field"]) == (422, "invalid_input", "image")
            assert "no longer stored" in error["message"]

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"job_id": "nobody"}, "image"),
            ({"sha256": "0" * 64}, "image"),
            ({"width": 97}, "image"),
            ({"job_id": None}, "image"),
            ({"url": "https://example.com/cat.png"}, "image"),
            ({"key": "jobs/a/inputs/b"}, "image.key"),
        ],
    )
    def test_wrong_reference_is_refused(self, client, order, change, field):
        shown = order(image=IMAGE)["request"]
        answer = client.post("/generate", json=shown | {"image": shown["image"] | change})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)

    def test_job_without_such_an_input_is_refused(self, client, order):
        job = order()
        answer = client.post("/generate", json={"prompt": "a red ball", "image": {"job_id": job["id"]}})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "image")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"fps": 30}, "fps"),
        ({"refinement": {}}, "refinement"),
        ({"t_thresh": 0.25}, "refinement"),
        ({"refine": False, "t_thresh": None}, "refinement"),
    ],
)
def test_wrong_value_of_a_determined_field_is_refused(client, order, change, field):
    shown = order(refine=True)["request"]
    answer = client.post("/generate", json=shown | change)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


@pytest.mark.parametrize("field", sorted(GenerateRequest.model_fields.keys() - {"prompt"}))
def test_null_counts_as_absent(client, order, field):
    without, with_null = order(seed=7), order(**{"seed": 7, field: None})
    if field == "seed":
        del without["request"]["seed"], with_null["request"]["seed"]
    assert with_null["request"] == without["request"]


@pytest.mark.parametrize("kind", [VideoRequest, ExtensionRequest])
def test_null_counts_as_absent_in_openais_bodies(kind):
    required = {"prompt": "a red ball", "seconds": "1"}
    nulls = dict.fromkeys(kind.model_fields.keys() - required.keys())
    assert kind.model_validate(required | nulls) == kind.model_validate(required)


def test_jobs_of_other_owners_cannot_be_used(redis_server, redis, tmp_path):
    app = create_app(settings_for(redis_server, tmp_path))
    with TestClient(app) as client:
        set_only_pool(redis, CAPABILITY)
        keys = app.state.backend.authenticator.keys
        alice, mallory = ({"Authorization": f"Bearer {keys.create(name)}"} for name in ("alice", "mallory"))
        job = client.post("/generate", json={"prompt": "x", "image": IMAGE}, headers=alice).json()
        assert client.post(f"/jobs/{job['id']}/retry", headers=mallory).status_code == 404
        answer = client.post("/generate", json=job["request"], headers=mallory)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "image")
        assert "no job" in answer.json()["error"]["message"]
        assert client.post(f"/jobs/{job['id']}/retry", headers=alice).status_code == 202
