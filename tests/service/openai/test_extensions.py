"""A video whose frame rate is higher than the model's can be extended."""

from __future__ import annotations

from tests.service.media import clip


def extended(client, worker, order, video):
    """Finish a job with this video, request its extension, and return the job of the extension."""
    worker.succeed(worker.claim(), video=video)
    body = {"prompt": "on", "seconds": "1", "video": {"id": order["id"]}}
    answer = client.post("/v1/videos/extensions", json=body)
    assert answer.status_code == 200, answer.text
    return client.get(f"/jobs/{answer.json()['id']}").json()


def test_extension_of_a_refined_video_has_the_rate_of_the_model(client, worker, order):
    job = extended(client, worker, order(), clip(34, 128, 192, rate=30))
    assert job["task"] == "video_continuation"
    assert job["request"]["video"]["num_frames"] == 17
    assert (job["request"]["fps"], job["request"]["num_condition_frames"]) == (15, 5)


def test_refined_video_with_too_few_frames_cannot_be_extended(client, worker, order):
    finished = order()
    worker.succeed(worker.claim(), video=clip(8, rate=30))
    body = {"prompt": "on", "seconds": "1", "video": {"id": finished["id"]}}
    answer = client.post("/v1/videos/extensions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "video"
    assert "at most 4, the number of frames of the clip" in answer.json()["error"]["message"]
