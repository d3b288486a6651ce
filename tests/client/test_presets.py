"""Saving, reading, using and deleting presets."""

from __future__ import annotations

import httpx
import pytest

from longcat_video_client import Conflict, InvalidRequest, NotFound
from longcat_video_client.models import Preset
from longcat_video_client.testing import FakeService
from service.presets.store import MAX_PRESETS


@pytest.fixture(params=["service", "fake"])
def at(request, connect):
    """Return a client of the service, or of the fake one."""
    if request.param == "fake":
        return connect("http://fake", transport=FakeService())
    return request.getfixturevalue("service")


def test_preset_is_saved_listed_and_deleted(at):
    saved = at.presets.save("draft", prompt="a red ball", num_inference_steps=3, extra={"seed": 7})
    assert saved.options == {"prompt": "a red ball", "num_inference_steps": 3, "seed": 7}
    at.presets.save("a b?", resolution="small")
    assert [preset.name for preset in at.presets.all()] == ["a b?", "draft"]
    assert at.presets.get("draft") == saved
    at.presets.delete("draft")
    assert [preset.name for preset in at.presets.all()] == ["a b?"]


def test_unknown_preset_is_not_found(at):
    for call in (at.presets.get, at.presets.delete):
        for name in ("nothing", ".."):
            with pytest.raises(NotFound) as caught:
                call(name)
            assert caught.value.code == "preset_not_found"


def test_input_files_cannot_be_saved(at):
    for image in ("https://example.com/a.png", b"a picture"):
        with pytest.raises(InvalidRequest):
            at.presets.save("draft", image=image)
    assert at.presets.all() == ()


def test_options_are_used_with_changes(service):
    preset = service.presets.save("draft", prompt=["one", "two"], resolution="small", seed=7)
    job = service.submit(extra=preset.with_changes({"prompt": "three", "width": 96, "height": 64}))
    request = job.request
    assert (request.prompt, request.width, request.height, request.seed) == ("three", 96, 64, 7)


@pytest.mark.parametrize(
    ("options", "changes", "expected"),
    [
        ({"width": 96, "height": 64}, {"resolution": "small"}, {"resolution": "small"}),
        ({"prompt": "a"}, {"prompts": ["b", "c"]}, {"prompts": ["b", "c"]}),
        ({"seed": 7, "refine": True}, {"seed": 8}, {"seed": 8, "refine": True}),
        ({"seed": 7}, {"prompt": "a"}, {"seed": 7, "prompt": "a"}),
    ],
)
def test_change_replaces_what_it_excludes(options, changes, expected):
    assert Preset(name="a", options=options).with_changes(changes) == expected


def test_too_many_presets_are_a_conflict(service):
    for number in range(MAX_PRESETS):
        service.presets.save(str(number))
    with pytest.raises(Conflict) as caught:
        service.presets.save("more")
    assert caught.value.code == "too_many_presets"


def test_fake_has_no_other_methods():
    with httpx.Client(transport=FakeService(), base_url="http://fake") as http:
        assert http.post("/presets/a", json={}).status_code == 404
