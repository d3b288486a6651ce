"""Presets and earlier prompts, which the form offers."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.service.console.conftest import opened
from tests.waiting import wait_until

pytestmark = pytest.mark.browser


def test_preset_is_kept_by_the_service_and_earlier_prompts_by_the_browser(page, client, browser):
    page.fill("textarea", "a red ball")
    page.click("text=More options")
    page.fill("[name=num_inference_steps]", "3")
    page.fill("[name=size]", "64x96")
    page.check("[name=distilled]")
    page.click("text=Generate")
    page.wait_for_selector(".job")
    page.click("text=Presets and earlier prompts")
    page.fill("#preset-name", "draft")
    page.keyboard.press("Enter")
    page.wait_for_selector("#presets button:text('draft')")
    (preset,) = client.get("/presets").json()["presets"]
    options = {"num_inference_steps": 3, "width": 64, "height": 96, "distilled": True}
    assert options.items() <= preset["options"].items()
    assert not preset["options"].keys() & {"prompt", "prompts", "seed"}
    page.reload()
    page.fill("textarea", "a blue ball")
    page.click("text=More options")
    page.fill("[name=num_inference_steps]", "")
    page.click("text=Presets and earlier prompts")
    page.click("#presets button:text('draft')")
    assert page.input_value("[name=num_inference_steps]") == "3"
    assert page.input_value("[name=size]") == "64×96"
    assert page.locator("[name=distilled]").is_checked()
    assert page.input_value("textarea") == "a blue ball"
    page.click("#prompts button:text('a red ball')")
    assert page.input_value("textarea") == "a red ball"
    with opened(browser, page.url) as other:
        other.click("text=Presets and earlier prompts")
        other.click("#presets button:text('draft')")
        assert other.input_value("[name=size]") == "64×96"
        assert other.locator("#prompts li").count() == 0
    page.click("[aria-label='Delete “draft”']")
    expect(page.locator("#presets li")).to_have_count(0)
    assert client.get("/presets").json()["presets"] == []
    assert len(client.get("/jobs").json()["jobs"]) == 1


def test_long_earlier_prompt_leaves_room_for_its_buttons(page):
    page.evaluate("localStorage.setItem('prompts:', JSON.stringify(['a red ball '.repeat(30)]))")
    page.reload()
    page.click("text=Presets and earlier prompts")
    forget = page.locator("#prompts .forget").bounding_box()
    around = page.locator("#prompts").bounding_box()
    assert forget["x"] + forget["width"] <= around["x"] + around["width"]
    page.click("#prompts .forget")
    expect(page.locator("#prompts li")).to_have_count(0)


def test_options_of_a_preset_without_a_field_are_shown_sent_and_removed(page, client):
    options = {"negative_prompt": "rain", "metadata": {"team": "x"}, "seed": 7, "prompt": "a red ball"}
    client.put("/presets/calm", json=options)
    page.click("text=Presets and earlier prompts")
    page.click("#presets button:text('calm')")
    expect(page.locator("#extra-names")).to_have_text("Also sent: metadata")
    page.reload()
    expect(page.locator("#extra-names")).to_have_text("Also sent: metadata")
    page.click("text=Generate")
    page.wait_for_selector(".job .prompt:has-text('a red ball')")
    (job,) = client.get("/jobs").json()["jobs"]
    assert (job["request"]["negative_prompt"], job["metadata"]) == ("rain", {"team": "x"})
    page.click("#forget-extra")
    assert page.locator("#extra").is_hidden()
    page.click("text=Generate")
    page.wait_for_selector(".job:nth-child(2)")
    assert client.get("/jobs").json()["jobs"][0]["metadata"] == {}


def test_presets_of_an_earlier_release_move_to_the_service_once(page, client):
    client.put("/presets/taken", json={"seed": 1})
    old = {
        "a/b": {"task": "", "size": "64x96", "num_frames": "17", "refine": "on", "priority": "low"},
        "taken": {"seed": "2"},
    }
    page.evaluate("old => localStorage.setItem('presets:', JSON.stringify(old))", old)
    page.reload()
    wait_until(lambda: page.evaluate("localStorage.getItem('presets:')") is None)
    stored = {preset["name"]: preset["options"] for preset in client.get("/presets").json()["presets"]}
    moved = {"width": 64, "height": 96, "num_frames": 17, "refine": True, "priority": "low"}
    assert stored == {"a-b": moved, "taken": {"seed": 1}}
    client.delete("/presets/a-b")
    page.reload()
    page.wait_for_selector("text=No videos yet")
    assert [preset["name"] for preset in client.get("/presets").json()["presets"]] == ["taken"]


def test_refused_preset_is_explained(page):
    page.click("text=Presets and earlier prompts")
    page.fill("#preset-name", "a/b")
    page.click("text=Save preset")
    page.wait_for_selector("#problem:has-text('without slashes')")
    page.fill("#preset-name", "ab")
    page.click("text=Save preset")
    page.wait_for_selector("#presets button:text('ab')")
    assert page.locator("#problem").is_hidden()
