"""The form for a new video."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from jobs.registration import GroupRegistration
from model.spec.params import MAX_SEED
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY
from tests.service.console.conftest import finish, hold_time
from tests.service.media import encoded, picture

pytestmark = pytest.mark.browser

HOUR_S = 3600


def test_segments_are_shown_for_long_videos_only(page):
    assert page.locator("[name=num_segments]").is_hidden()
    page.select_option("[name=task]", "long_video")
    page.fill("textarea", "a red ball\nit rolls away")
    page.fill("[name=num_segments]", "2")
    page.click("text=Generate")
    page.wait_for_selector("text=long video")
    assert "it rolls away" in page.text_content(".job .prompt")


def test_refused_request_shows_the_reason(page, tmp_path):
    (tmp_path / "cat.png").write_bytes(encoded(picture()))
    page.fill("textarea", "it moves")
    page.set_input_files("input[type=file]", tmp_path / "cat.png")
    page.fill("[name=size]", "65 x 96")
    page.click("text=Generate")
    page.wait_for_selector("text=width: must be a multiple of 16")
    page.fill("[name=size]", "96 x 64")
    page.click("text=Generate")
    page.wait_for_selector("text=image to video · 96×64")


def test_error_of_an_earlier_attempt_does_not_stay(page):
    page.fill("textarea", "it moves")
    page.fill("[name=size]", "65x96")
    page.click("text=Generate")
    page.wait_for_selector("text=width: must be a multiple of 16")
    page.fill("[name=size]", "nonsense")  # the browser refuses it by the pattern
    assert page.locator("#problem").is_hidden()
    page.fill("[name=size]", "65x96")
    page.click("text=Generate")
    page.wait_for_selector("text=width: must be a multiple of 16")
    page.evaluate("document.forms.request.elements.size.setCustomValidity('wrong')")
    page.click("text=Generate")
    page.wait_for_selector("#problem", state="hidden")


def test_button_that_generates_is_whole_with_all_options_open(page):
    page.set_viewport_size({"width": 1440, "height": 900})
    page.get_by_text("More options").click()
    expect(page.get_by_role("button", name="Generate")).to_be_in_viewport(ratio=1)


def test_sizes_are_those_of_the_checkpoint(page, order):
    page.wait_for_selector("#sizes option", state="attached")
    offered = page.evaluate("[...document.getElementById('sizes').options].map((option) => option.value)")
    assert offered == ["small", "large", "96×64", "64×96", "192×128"]
    field = "document.forms.request.elements.size"
    for size, is_valid in (("large", True), ("64 x 96", True), ("192×128", True), ("480p", False)):
        page.fill("[name=size]", size)
        assert page.evaluate(f"{field}.validity.valid") == is_valid, size
    page.fill("textarea", "it moves")
    page.fill("[name=size]", "large")
    page.click("text=Generate")
    page.wait_for_selector("text=text to video · 192×128")


def test_what_was_entered_survives_a_reload(page):
    page.fill("textarea", "a red ball\nit rolls away")
    page.select_option("[name=task]", "long_video")
    page.fill("[name=num_segments]", "2")
    page.click("text=More options")
    page.check("[name=distilled]")
    page.select_option("[name=priority]", "low")
    page.reload()
    assert page.input_value("textarea") == "a red ball\nit rolls away"
    assert page.locator("[name=num_segments]").is_visible()
    assert page.input_value("[name=num_segments]") == "2"
    assert page.locator("[name=distilled]").is_checked()
    assert page.input_value("[name=priority]") == "low"
    page.fill("textarea", "")
    page.reload()
    assert page.input_value("textarea") == ""


def test_file_that_the_browser_cannot_show_has_no_preview(page, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no image")
    page.set_input_files("input[type=file]", tmp_path / "photo.png")
    page.wait_for_selector("#preview", state="hidden")
    assert page.text_content("#file-name") == "photo.png"


def test_empty_list_offers_example_prompts(page):
    page.wait_for_selector("text=No videos yet")
    page.locator(".example").first.click()
    assert page.input_value("textarea") == page.locator(".example").first.text_content()
    page.click("text=Generate")
    page.wait_for_selector("text=position 1 in the queue")
    assert page.locator("#empty").is_hidden()


def test_chosen_file_is_previewed_and_can_be_removed(page, tmp_path):
    (tmp_path / "cat.png").write_bytes(encoded(picture()))
    height = page.locator("#drop").bounding_box()["height"]
    page.set_input_files("input[type=file]", tmp_path / "cat.png")
    page.wait_for_selector("#preview:not([hidden])")
    assert page.text_content("#file-name") == "cat.png"
    assert page.locator("#drop").bounding_box()["height"] == height
    page.click("text=Remove")
    assert page.locator("#preview").is_hidden()
    assert page.evaluate("document.activeElement.name") == "file"


def test_seed_that_a_number_cannot_hold_stays_exact(page, live, client):
    seed = 2**53 + 1
    client.post("/generate", json={"prompt": "a red ball", "seed": seed})
    page.wait_for_selector(f"text=Seed {seed}")
    hold_time(page)
    page.click("text=Copy as curl")
    page.wait_for_selector("text=Copied")
    page.clock.resume()
    command = page.evaluate("navigator.clipboard.readText()")
    assert f'"seed":{seed},' in command
    page.click("text=Edit")
    assert page.input_value("[name=seed]") == str(seed)
    page.click("text=Generate")
    page.wait_for_selector(f".job:nth-child(2) >> text=Seed {seed}")
    assert [job["request"]["seed"] for job in client.get("/jobs").json()["jobs"]] == [seed, seed]


def test_whole_seed_is_visible(page):
    page.click("text=More options")
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        page.fill("[name=seed]", str(MAX_SEED))
        assert page.locator("[name=seed]").evaluate("field => field.scrollWidth <= field.clientWidth")


def test_user_requests_several_videos_by_a_time(page, client):
    page.fill("textarea", "a red ball")
    page.click("text=More options")
    page.fill("[name=seed]", "7")
    page.fill("[name=num_videos]", "3")
    page.fill("[name=deadline_s]", str(4 * HOUR_S))
    page.click("text=Generate")
    page.wait_for_selector(".job:nth-child(3)")
    expect(page.locator("#queued p")).to_have_text("Queued: 3 videos of “a red ball”.")
    expect(page.locator(".batch")).to_have_text([f"Video {number} of 3" for number in (3, 2, 1)])
    expect(page.locator(".facts")).to_have_text(["wanted in 4 h"] * 3)
    assert [job["request"]["seed"] for job in client.get("/jobs").json()["jobs"]] == [9, 8, 7]


def test_frames_that_are_taken_over_can_be_chosen(page, worker, client):
    client.post("/generate", json={"prompt": "a red ball", "num_frames": 17})
    finish(worker, num_frames=17)
    page.reload()
    expect(page.locator("[name=num_condition_frames]")).not_to_have_attribute("placeholder", "default")
    page.click("button:text('Continue')")
    page.click("text=More options")
    page.fill("[name=num_condition_frames]", "5")
    page.click("text=Generate")
    page.wait_for_selector(".job:nth-child(2)")
    assert client.get("/jobs").json()["jobs"][0]["request"]["num_condition_frames"] == 5


def test_model_can_be_chosen_if_there_are_several(page, redis, client):
    page.click("text=More options")
    expect(page.locator("[name=model]")).to_be_hidden()
    other = CAPABILITY.model_copy(update={"model": "canary"})
    for name, capability in (("a", CAPABILITY), ("b", other)):
        GroupRegistration(redis, name, ttl_s=600).heartbeat("ready", 1, None, capability)
    page.reload()
    page.click("text=More options")
    page.select_option("[name=model]", "canary")
    page.reload()
    page.click("text=More options")
    expect(page.locator("[name=model]")).to_be_visible()
    assert page.input_value("[name=model]") == "canary"
    assert page.locator("[name=model] option").all_text_contents().count("canary") == 1
    page.fill("textarea", "a red ball")
    page.click("text=Generate")
    page.wait_for_selector(".job")
    assert client.get("/jobs").json()["jobs"][0]["request"]["model"] == "canary"
    page.select_option("[name=model]", "")
    page.click("text=Edit")
    assert page.input_value("[name=model]") == "canary"


def test_words_that_the_checkpoint_does_not_know_are_named(page, client, redis):
    page.fill("textarea", "a magenta ball, it Wobbles")
    assert page.locator("#unknown-words").is_hidden()
    set_only_pool(redis, CAPABILITY.model_copy(update={"known_words": ("a", "ball", "it", "red")}))
    page.reload()
    page.wait_for_selector("text=does not know: magenta, wobbles")
    page.click("text=Words that this checkpoint knows")
    page.wait_for_selector("text=a, ball, it, red")
    page.click("text=Generate")
    page.wait_for_selector(".job .warnings:has-text('does not know the words magenta, wobbles')")
    page.fill("textarea", "a red ball")
    assert page.locator("#unknown-words").is_hidden()
