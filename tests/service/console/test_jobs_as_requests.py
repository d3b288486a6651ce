"""Jobs that are repeated, edited, continued and refined."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.service.console.conftest import finish
from tests.service.media import encoded, picture

pytestmark = pytest.mark.browser


def test_user_repeats_a_job_with_another_seed(page, worker, client):
    page.fill("textarea", "a red ball")
    page.fill("[name=size]", "64x96")
    page.click("text=Generate")
    page.click("text=New seed")
    page.wait_for_selector(".job:nth-child(2)")
    repeated, first = (job["request"] for job in client.get("/jobs").json()["jobs"])
    assert repeated.pop("seed") != first.pop("seed")
    assert repeated == first


def test_seed_of_an_edited_job_is_shown_and_can_be_made_random(page, client):
    client.post("/generate", json={"prompt": "a red ball", "seed": 7})
    page.reload()
    assert page.locator("#fixed-seed").is_hidden()
    page.click("text=Edit")
    expect(page.locator("#fixed-seed")).to_contain_text("Seed 7")
    expect(page.locator("[name=seed]")).to_be_hidden()
    page.click("text=Random seed")
    assert page.locator("#fixed-seed").is_hidden()
    page.click("text=Generate")
    page.wait_for_selector(".job:nth-child(2)")
    assert client.get("/jobs").json()["jobs"][0]["request"]["seed"] != 7


def test_user_edits_the_request_of_a_job(page, client, tmp_path):
    (tmp_path / "cat.png").write_bytes(encoded(picture()))
    page.fill("textarea", "a red ball")
    page.set_input_files("input[type=file]", tmp_path / "cat.png")
    page.click("text=More options")
    page.fill("[name=seed]", "7")
    page.fill("[name=num_inference_steps]", "3")
    page.click("text=Generate")
    page.wait_for_selector(".job")
    page.fill("[name=seed]", "9")
    page.click("text=Remove")
    page.click("text=Edit")
    assert page.text_content("#file-name") == "The image of that job"
    assert page.input_value("[name=seed]") == "7"
    page.fill("textarea", "a blue ball")
    page.click("text=Generate")
    page.wait_for_selector(".job:nth-child(2)")
    edited, first = (job["request"] for job in client.get("/jobs").json()["jobs"])
    assert (edited.pop("prompt"), first.pop("prompt")) == ("a blue ball", "a red ball")
    assert edited.pop("image")["sha256"] == first.pop("image")["sha256"]
    assert edited == first


def test_options_of_a_refinement_are_requested_edited_and_left_out(page, worker, client):
    page.fill("textarea", "a red ball")
    page.click("text=More options")
    page.check("[name=refine]")
    page.check("[name=spatial_refine_only]")
    page.fill("[name=t_thresh]", "0.3")
    page.click("text=Generate")
    page.wait_for_selector(".job")
    finish(worker)
    page.uncheck("[name=spatial_refine_only]")
    page.fill("[name=t_thresh]", "")
    page.click("text=Edit")
    assert page.is_checked("[name=spatial_refine_only]")
    assert page.input_value("[name=t_thresh]") == "0.3"
    expect(page.locator("#extra")).to_be_hidden()
    page.click("text=Generate")
    page.wait_for_selector(".job:nth-child(2)")
    edited, first = (job["request"] for job in client.get("/jobs").json()["jobs"])
    assert edited == first
    assert (first["spatial_refine_only"], first["t_thresh"]) == (True, 0.3)
    page.click(".job:nth-child(2) button:text('Continue')")
    assert not page.is_checked("[name=spatial_refine_only]")
    assert page.input_value("[name=t_thresh]") == ""


def test_edited_request_keeps_what_the_form_has_no_field_for(page, client):
    options = {"negative_prompt": "rain", "metadata": {"team": "x"}, "seed": 7, "prompt": "a red ball"}
    client.post("/generate", json=options)
    page.reload()
    expect(page.locator("#examples button")).not_to_have_count(0)  # the defaults are known
    page.click("text=Edit")
    expect(page.locator("#extra-names")).to_have_text("Also sent: metadata")
    assert page.input_value("[name=negative_prompt]") == "rain"
    page.click("text=Generate")
    page.wait_for_selector(".job:nth-child(2)")
    edited, first = client.get("/jobs").json()["jobs"]
    assert edited["request"] == first["request"]
    assert edited["metadata"] == first["metadata"]


@pytest.mark.parametrize("given", [{}, {"negative_prompt": ""}], ids=["default", "none"])
def test_edited_request_keeps_its_negative_prompt(page, client, given):
    client.post("/generate", json={"prompt": "a red ball", **given})
    page.reload()
    expect(page.locator("#examples button")).not_to_have_count(0)  # the defaults are known
    page.click("text=Edit")
    assert page.input_value("[name=negative_prompt]") == ""
    page.click("text=Generate")
    page.wait_for_selector(".job:nth-child(2)")
    expected = given.get("negative_prompt", "blurred")
    assert [job["request"]["negative_prompt"] for job in client.get("/jobs").json()["jobs"]] == [expected] * 2


def test_video_of_an_edited_request_can_be_refined(page, worker, client):
    client.post("/generate", json={"prompt": "a red ball", "negative_prompt": "rain", "num_frames": 17})
    finish(worker, num_frames=17)
    page.reload()
    expect(page.locator("#examples button")).not_to_have_count(0)
    page.click("text=Edit")
    page.click("button:text('Refine')")
    page.click("text=Generate")
    page.wait_for_selector(".task:has-text('refine')")


def test_refined_video_is_not_offered_for_refinement(page, worker, client):
    for options in ({}, {"refine": True}):
        client.post("/generate", json={"prompt": "a red ball", **options})
        finish(worker)
    page.reload()
    expect(page.locator("video[src]")).to_have_count(2)
    assert page.locator(".job:nth-child(1) [data-action=refine]").is_hidden()
    assert page.locator(".job:nth-child(2) [data-action=refine]").is_visible()


def test_user_continues_and_refines_a_video_and_starts_from_its_frame(page, worker, client):
    page.fill("textarea", "a red ball")
    page.click("text=Generate")
    page.wait_for_selector(".job")
    finish(worker, num_frames=17)
    page.wait_for_selector("video[src]")
    page.click("button:text('Continue')")
    assert page.text_content("#file-name") == "The end of that video"
    page.click("text=Generate")
    page.wait_for_selector("text=video continuation")
    page.click(".job[data-status=succeeded] button:text('Refine')")
    page.click("text=Generate")
    page.wait_for_selector(".task:has-text('refine')")
    page.locator("video[src]").evaluate(
        "v => new Promise(done => { v.onseeked = done; v.preload = 'auto'; v.currentTime = 4 / 15 })"
    )
    page.click(".job[data-status=succeeded] button:text('Use frame')")
    assert page.text_content("#file-name") == "Frame 4 of that video"
    page.click("text=Generate")
    page.wait_for_selector(".task:has-text('image to video')")
    tasks = [job["task"] for job in client.get("/jobs").json()["jobs"]]
    assert tasks == ["image_to_video", "refine", "video_continuation", "text_to_video"]
    assert page.locator(".source:not([hidden])").all_text_contents() == [
        "From frame 4 of a video",
        "From a video",
        "From a video",
    ]


def test_user_goes_to_the_job_whose_video_was_used(page, worker, client):
    made = client.post("/generate", json={"prompt": "a red ball", "num_frames": 17}).json()
    finish(worker, num_frames=17)
    client.post("/generate", json={"prompt": "it stops", "video": {"job": made["id"]}})
    page.reload()
    page.fill("[name=text]", "it stops")
    expect(page.locator(".job")).to_have_count(1)
    page.click("text=From a video")
    expect(page.locator(f".job[data-id='{made['id']}']")).to_be_focused()
    client.delete(f"/jobs/{made['id']}")
    page.fill("[name=text]", "it stops")
    expect(page.locator(".job")).to_have_count(1)
    page.click("text=From a video")
    page.wait_for_selector("text=That video has been deleted.")
    expect(page.locator(".job .source")).to_have_text("From a video")
