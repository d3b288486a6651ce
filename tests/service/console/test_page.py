"""The page as a whole: from a request to its video, on any screen, by keyboard, and with a session."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from jobs.record import Progress
from jobs.registration import POOLS_KEY
from service.keys.api_keys import ApiKeys
from tests.service.console.conftest import finish, hold_time
from tests.service.media import clip, encoded, picture

pytestmark = pytest.mark.browser


def contrast(*colors: str) -> float:
    """Return the contrast ratio of two colours by WCAG."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    darker, lighter = sorted(luminance(color) for color in colors)
    return (lighter + 0.05) / (darker + 0.05)


def test_user_requests_watches_and_plays_a_video(page, worker):
    page.fill("textarea", "a red ball")
    page.keyboard.press("Tab")
    page.click("text=Generate")
    page.wait_for_selector("text=position 1 in the queue")
    claim = worker.claim()
    worker.job_store.holder.renew_lease(
        claim, Progress(phase="denoise", step=2, num_steps=4, fraction=0.5, eta_s=3.0)
    )
    page.wait_for_selector("text=denoising · step 2 of 4 · 3 s left")
    worker.succeed(claim, video=clip(), thumbnail=encoded(picture(), "JPEG"))
    page.wait_for_selector(".job[data-status=succeeded] video[src]")
    video = page.locator("video[src]")
    assert video.evaluate("async v => { v.muted = true; await v.play(); return v.videoWidth; }") == 96


def test_usage_of_each_day_is_shown(page, worker, client):
    page.click("summary:text('Usage')")
    expect(page.locator("#usage-note")).to_have_text("Nothing was used in the last 31 days.")
    client.post("/generate", json={"prompt": "a red ball"})
    finish(worker)
    (used,) = client.get("/usage").json()["usage"]
    page.click("summary:text('Usage')")
    page.click("summary:text('Usage')")
    expect(page.locator("#used li")).to_have_text(f"{used['day']} · {used['gpu_s']:.1f} GPU s")


def test_user_signs_in_and_out(page, worker, redis):
    key = ApiKeys(redis).create("me")
    page.wait_for_selector("#key:not([hidden])")
    page.wait_for_selector("text=an API key is required")
    page.fill("#key input", key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#key", state="hidden")
    page.fill("textarea", "a red ball")
    page.click("text=Generate")
    page.wait_for_selector("text=position 1 in the queue")
    worker.succeed(worker.claim(), video=clip(), thumbnail=encoded(picture(), "JPEG"))
    page.reload()
    page.wait_for_selector(".job[data-status=succeeded] video[src]")
    hold_time(page)
    page.click("text=Copy as curl")
    page.wait_for_selector("text=Copied")
    page.clock.resume()
    assert "Bearer $LONGCAT_API_KEY" in page.evaluate("navigator.clipboard.readText()")
    video = page.locator("video[src]")
    assert video.evaluate("async v => { v.muted = true; await v.play(); return v.videoWidth; }") == 96
    expect(page.locator("#signed-in")).to_have_text("me")
    page.click("text=Sign out")
    page.wait_for_selector("text=an API key is required")
    assert page.locator(".job").count() == 0
    assert page.input_value("textarea") == ""
    expect(page.locator("#signed-in")).to_be_hidden()
    expect(page.locator("#sign-out")).to_be_hidden()


def test_page_shows_that_a_session_has_ended(page, redis):
    key = ApiKeys(redis).create("me")
    page.reload()
    page.fill("#key-text", key)
    page.keyboard.press("Enter")
    expect(page.locator("#signed-in")).to_have_text("me")
    ApiKeys(redis).revoke(key.split("_")[1])
    page.evaluate("window.dispatchEvent(new Event('online'))")
    page.wait_for_selector("text=an API key is required")
    expect(page.locator("#sign-out")).to_be_hidden()
    key = ApiKeys(redis).create("other")
    page.request.post(f"{page.url}session", headers={"Authorization": f"Bearer {key}"})  # as another tab
    page.evaluate("window.dispatchEvent(new Event('online'))")
    expect(page.locator("#signed-in")).to_have_text("other")


def test_all_controls_are_reachable_by_keyboard(page):
    seen = []
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.name || document.activeElement.textContent.trim()"))
    assert seen[:7] == ["API key", "API", "prompt", "task", "size", "file", "More options"]
    assert "Generate" in seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_page_fits_the_screen_with_readable_contrast(page, worker, scheme, width, height, tmp_path):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    for text in ("a red ball rolls across a wooden floor", "a cat " + "w" * 120):
        page.fill("textarea", text)
        page.click("text=Generate")
        page.wait_for_selector(f".prompt:has-text('{text[:30]}')")
    worker.job_store.holder.renew_lease(
        worker.claim(), Progress(phase="denoise", step=2, num_steps=4, fraction=0.5, eta_s=3.0)
    )
    page.wait_for_selector("text=denoising · step 2 of 4 · 3 s left")
    page.screenshot(
        path=os.environ.get("SCREENSHOTS", tmp_path) / Path(f"{scheme}-{width}.png"), full_page=True
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, text = page.evaluate(
        "[getComputedStyle(document.body)].flatMap(s => [s.backgroundColor, s.color])"
    )
    assert contrast(ground, text) > 7


def test_page_says_that_no_worker_has_started(page, redis):
    expect(page.locator("#health")).to_have_text("no worker is ready; new jobs wait")
    expect(page.locator("#examples-title")).to_be_visible()
    redis.delete(POOLS_KEY)
    page.reload()
    expect(page.locator("#health")).to_have_text("no worker is ready; jobs are accepted once one has started")
    expect(page.locator("#examples-title")).to_be_hidden()


def test_changes_are_announced_and_deletion_is_confirmed(page, worker, client):
    page.fill("textarea", "a red ball")
    page.click("text=Generate")
    page.wait_for_selector("text=position 1 in the queue")
    worker.succeed(worker.claim(), video=clip(), thumbnail=encoded(picture(), "JPEG"))
    page.wait_for_selector("#news:has-text('is finished')", state="attached")
    video = page.locator("video[src]")
    assert (video.get_attribute("width"), video.get_attribute("height")) == ("96", "64")
    hold_time(page)  # or the button asks for confirmation for a few seconds only
    page.click("text=Delete")
    assert client.get("/jobs").json()["jobs"] != []
    page.click("text=Delete permanently?")
    page.wait_for_selector("text=No videos yet")
    assert client.get("/jobs").json()["jobs"] == []


def test_reduced_motion_disables_transitions(page):
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"


def test_admin_filters_jobs_by_owner(page, redis, client):
    keys = ApiKeys(redis)
    owners = ("alice", "bob")
    for owner in owners:
        headers = {"Authorization": f"Bearer {keys.create(owner)}"}
        client.post("/generate", json={"prompt": f"of {owner}"}, headers=headers)
    page.reload()
    page.fill("#key-text", keys.create("ops", admin=True))
    page.click("#key >> text=Sign in")
    expect(page.locator(".owner")).to_have_text(["bob", "alice"])
    expect(page.locator("#signed-in")).to_have_text("ops (admin)")
    page.fill("[name=owner]", "alice")
    expect(page.locator(".prompt")).to_have_text(["of alice"])
    page.click("#keys")
    page.fill("#key-text", keys.create("bob"))
    page.click("#key >> text=Sign in")
    expect(page.locator(".prompt")).to_have_text(["of bob"])
    expect(page.locator("#signed-in")).to_have_text("bob")
    expect(page.locator("[name=owner]")).to_be_hidden()
    expect(page.locator(".owner")).to_be_hidden()


def test_all_watched_jobs_share_one_connection(page, client, worker):
    opened = []
    page.on("request", lambda request: opened.append(request.url))
    jobs = [client.post("/generate", json={"prompt": f"ball {n}"}).json()["id"] for n in range(3)]
    opened.clear()  # the page may have loaded some of them before
    page.reload()
    page.wait_for_selector(".job:nth-child(3)")
    finish(worker)
    page.wait_for_selector(".job[data-status=succeeded]")
    streams = [url.partition("jobs=")[2] for url in opened if "/events" in url]
    assert set(streams[0].split(",")) == set(jobs)
