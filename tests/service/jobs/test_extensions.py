"""Videos that go on: where the one before has more frames a second than the model makes."""

from __future__ import annotations

from tests.service.media import clip, turned_clip


def extended(client, worker, order, video):
    """A job that goes on with this video."""
    worker.succeed(worker.claim(), video=video)
    body = {"prompt": "on", "seconds": "1", "video": {"id": order["id"]}}
    answer = client.post("/v1/videos/extensions", json=body)
    assert answer.status_code == 200, answer.text
    return client.get(f"/jobs/{answer.json()['id']}").json()


def test_a_refined_video_goes_on_at_the_models_rate(client, worker, order):
    job = extended(client, worker, order(), clip(34, 128, 192, rate=30))
    assert job["task"] == "video_continuation"
    assert job["request"]["video"]["num_frames"] == 17
    assert (job["request"]["fps"], job["request"]["num_condition_frames"]) == (15, 5)


def test_a_refined_video_that_is_too_short_for_that_is_refused(client, worker, order):
    finished = order()
    worker.succeed(worker.claim(), video=clip(8, rate=30))
    body = {"prompt": "on", "seconds": "1", "video": {"id": finished["id"]}}
    answer = client.post("/v1/videos/extensions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "video"
    assert "at most 4, the number of frames of the clip" in answer.json()["error"]["message"]


def test_a_clip_from_a_telephone_gives_a_video_that_stands_upright(client):
    content = turned_clip(90, clip(30, 64, 96, rate=30))
    answer = client.post("/generate", data={"prompt": "on"}, files={"video": content})
    assert answer.status_code == 202, answer.text
    request = answer.json()["request"]
    assert [request["video"][name] for name in ("height", "width", "num_frames")] == [96, 64, 15]
    assert (request["height"], request["width"]) == (96, 64)
