"""Owners keep named options of requests."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.errors import Unavailable
from service.errors import TooManyPresets
from service.keys.api_keys import ApiKeys
from service.presets.routes import MAX_BYTES
from service.presets.store import MAX_PRESETS, Presets

DRAFT = {"num_inference_steps": 3, "resolution": "small", "distilled": False}


def saved(client):
    return client.get("/presets").json()["presets"]


def test_preset_is_kept_as_it_was_given_until_it_is_deleted(client):
    answer = client.put("/presets/draft", json=DRAFT)
    assert (answer.status_code, answer.json()) == (200, {"name": "draft", "options": DRAFT})
    assert saved(client) == [{"name": "draft", "options": DRAFT}]
    assert client.delete("/presets/draft").status_code == 204
    assert saved(client) == []


def test_saving_again_replaces_all_options(client):
    client.put("/presets/draft", json=DRAFT)
    client.put("/presets/draft", json={"seed": 7, "negative_prompt": None})
    assert saved(client) == [{"name": "draft", "options": {"seed": 7}}]


def test_presets_are_listed_by_name(client):
    for name in ("b", "a", "%C3%84 & %23"):
        client.put(f"/presets/{name}", json={})
    assert [preset["name"] for preset in saved(client)] == ["a", "b", "Ä & #"]


def test_form_has_the_same_fields(client):
    form = {"num_inference_steps": (None, "3"), "resolution": (None, "small"), "distilled": (None, "off")}
    assert client.put("/presets/draft", files=form).json()["options"] == DRAFT


def test_request_with_the_options_of_a_preset_is_accepted(client):
    options = {**DRAFT, "metadata": {"team": "x"}, "priority": "low", "num_videos": 2}
    client.put("/presets/draft", json=options)
    (preset,) = saved(client)
    job = client.post("/generate", json={"prompt": "a red ball", **preset["options"]})
    assert job.status_code == 202
    assert job.json()["metadata"] == {"team": "x"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": "3"}, "num_inference_steps"),
        ({"steps": 3}, "steps"),
        ({"image": {"job": "a"}}, "image"),
        ({"video": {"url": "https://example.com/a.mp4"}}, "video"),
        ({"fps": 15}, "fps"),
        ({"prompt": " "}, "prompt"),
        ({"prompts": []}, "prompts"),
        ({"webhook_url": "ftp://a"}, "webhook_url"),
        ({"num_videos": 2, "deadline_s": 5, "refuse_if_late": True}, "num_videos"),
    ],
)
def test_wrong_options_are_refused_by_name(client, options, field):
    answer = client.put("/presets/draft", json=options)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error.get("field")) == ("invalid_request", field)
    assert saved(client) == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt": "a ball", "prompts": ["a ball", "a star"]}, "prompts"),
        ({"distilled": True, "guidance_scale": 4.0}, "guidance_scale"),
        ({"distilled": True, "negative_prompt": "red"}, "negative_prompt"),
        ({"guidance_scale": 1.0, "negative_prompt": ""}, "negative_prompt"),
        ({"distilled": True, "quality": "balanced"}, "quality"),
        ({"distilled": True, "num_inference_steps": 51}, "num_inference_steps"),
        ({"resolution": "small", "height": 64, "width": 96}, "resolution"),
        ({"resolution": "small", "width": 96}, "resolution"),
        ({"width": 100}, "width"),
        ({"num_frames": 16}, "num_frames"),
        ({"num_frames": 17, "num_condition_frames": 17}, "num_condition_frames"),
        ({"num_segments": 2, "prompts": ["a", "b", "c"]}, "prompts"),
        ({"task": "text_to_video", "num_segments": 2}, "num_segments"),
        ({"task": "image_to_video", "num_condition_frames": 5}, "num_condition_frames"),
        ({"refine": False, "t_thresh": 0.5}, "t_thresh"),
        ({"t_thresh": 1.5}, "t_thresh"),
        ({"task": "refine", "distilled": True}, "distilled"),
        ({"task": "refine", "negative_prompt": "red"}, "negative_prompt"),
        ({"task": "refine", "prompts": ["a", "b"]}, "prompts"),
    ],
)
def test_options_that_contradict_each_other_are_refused(client, options, field):
    answer = client.put("/presets/draft", json=options)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert saved(client) == []


@pytest.mark.parametrize(
    "options",
    [
        {"width": 96},
        {"t_thresh": 0.5},
        {"spatial_refine_only": True, "resolution": "720p"},
        {"num_condition_frames": 5},
        {"num_condition_frames": 0, "num_frames": 1},
        {"num_segments": 40, "num_frames": 93, "num_condition_frames": 13},
        {"task": "long_video"},
        {"task": "long_video", "prompts": ["a", "b"]},
        {"task": "refine", "num_frames": 7, "num_condition_frames": 13, "height": 50, "width": 60},
        {"task": "image_to_video", "quality": "balanced", "negative_prompt": "", "resolution": "other"},
        {"num_inference_steps": 1000, "guidance_scale": 1000.0},
    ],
)
def test_options_that_files_others_or_another_checkpoint_make_valid_are_kept(client, options):
    assert client.put("/presets/draft", json=options).json() == {"name": "draft", "options": options}


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [("{", "application/json", 400), ("[]", "application/json", 400), ("a", "text/plain", 415)],
)
def test_other_bodies_are_refused(client, content, media_type, status):
    answer = client.put("/presets/draft", content=content, headers={"Content-Type": media_type})
    assert answer.status_code == status


def test_file_is_refused(client):
    answer = client.put("/presets/draft", files={"image": ("a.png", b"a picture")})
    assert answer.status_code == 400
    assert saved(client) == []


@pytest.mark.parametrize("name", ["a%2Fb", "a/b", "%2E%2E%2F", "%2E", "a%00b", "%20a", "a%20", "a" * 61])
def test_wrong_name_is_refused(client, name):
    answer = client.put(f"/presets/{name}", json={})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "name"


def test_longest_name_is_accepted(client):
    assert client.put(f"/presets/{'a' * 60}", json={}).status_code == 200


def test_too_large_options_are_refused(client):
    overhead = len(json.dumps({"prompt": ""}))
    assert (
        client.put("/presets/a", json={"prompt": "é" + "a" * (MAX_BYTES - overhead - 2)}).status_code == 200
    )
    answer = client.put("/presets/b", json={"prompt": "é" + "a" * (MAX_BYTES - overhead - 1)})
    assert answer.status_code == 422
    assert str(MAX_BYTES) in answer.json()["error"]["message"]


def test_one_preset_too_many_is_refused_and_others_can_still_be_replaced(client):
    for number in range(MAX_PRESETS):
        client.put(f"/presets/{number}", json={})
    answer = client.put("/presets/more", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "too_many_presets")
    assert client.put("/presets/7", json=DRAFT).status_code == 200
    assert len(saved(client)) == MAX_PRESETS


def test_limit_holds_for_requests_at_the_same_time(redis):
    presets = Presets(redis, "alice")

    def save(number):
        try:
            presets.save(str(number), {})
        except TooManyPresets:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = list(pool.map(save, range(MAX_PRESETS + 20)))
    assert len(presets.all()) == sum(accepted) == MAX_PRESETS


def test_owners_have_their_own_presets(client, redis):
    headers = [{"Authorization": f"Bearer {ApiKeys(redis).create(owner)}"} for owner in ("alice", "bob")]
    client.put("/presets/draft", json=DRAFT, headers=headers[0])
    assert client.get("/presets", headers=headers[0]).json()["presets"] != []
    assert client.get("/presets", headers=headers[1]).json()["presets"] == []
    assert client.delete("/presets/draft", headers=headers[1]).status_code == 404
    assert client.get("/presets").status_code == 401
    assert client.put("/presets/draft", json={}).status_code == 401
    assert client.delete("/presets/draft").status_code == 401


def test_unknown_preset_cannot_be_deleted(client):
    answer = client.delete("/presets/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "preset_not_found")


def test_what_a_later_release_stored_is_shown_without_unknown_options(client, redis):
    document = {"schema_version": 2, "owner": "a", "options": {"seed": 7, "mood": "calm"}}
    redis.hset("longcat:presets", "later", json.dumps(document))
    assert saved(client) == [{"name": "later", "options": {"seed": 7}}]


def test_nothing_is_stored_while_redis_is_almost_full(client, app, monkeypatch):
    def full(_):
        raise Unavailable("Redis is almost full")

    monkeypatch.setattr(type(app.state.backend.memory_guard), "check", full)
    assert client.put("/presets/draft", json=DRAFT).status_code == 503
    assert saved(client) == []
