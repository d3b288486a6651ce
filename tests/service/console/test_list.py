"""The list of jobs, and what it shows of each."""

from __future__ import annotations

import json
import shlex

import pytest
from playwright.sync_api import expect

from tests.service.console.conftest import finish, hold_time
from tests.service.media import clip, encoded, picture
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

HOUR_S = 3600


def test_job_with_a_deadline_shows_whether_it_is_met(page, worker, redis, client):
    body = {"prompt": "a red ball", "deadline_s": 4 * HOUR_S}
    ids = [client.post("/generate", json=body).json()["id"] for _ in range(3)]
    page.wait_for_selector(f"[data-id='{ids[0]}'] >> text=Wanted in 4 h")
    redis.hincrby(f"longcat:job:{ids[1]}", "deadline_ms", -5 * HOUR_S * 1000)
    page.wait_for_selector(f"[data-id='{ids[1]}'] >> text=Deadline missed")
    for _ in range(2):
        worker.succeed(worker.claim(), video=clip(), thumbnail=encoded(picture(), "JPEG"))
    page.wait_for_selector(f"[data-id='{ids[0]}'][data-status=succeeded] >> text=Deadline met")
    page.wait_for_selector(f"[data-id='{ids[1]}'][data-status=succeeded] >> text=Deadline missed")
    client.post(f"/jobs/{ids[2]}/cancel")
    page.wait_for_selector(f"[data-id='{ids[2]}'][data-status=cancelled]")
    assert page.text_content(f"[data-id='{ids[2]}'] .facts") == ""


def test_job_shows_what_it_costs(page, worker, redis, client):
    job_id = client.post("/generate", json={"prompt": "a red ball"}).json()["id"]
    price = {"gpu_hour_price": "36", "currency": "EUR", "expected_gpu_ms": "150000"}
    redis.hset(f"longcat:job:{job_id}", mapping=price)
    page.wait_for_selector(f"[data-id='{job_id}'] >> text=Costs about 1.50 EUR")
    claim = worker.claim()
    redis.hincrby(f"longcat:job:{job_id}", "claimed_ms", -200_000)
    worker.succeed(claim, video=clip(), thumbnail=encoded(picture(), "JPEG"))
    page.wait_for_selector(
        f"[data-id='{job_id}'][data-status=succeeded] .facts >> text=/^Cost 2.[0-9]+ EUR/i"
    )


def test_job_can_be_cancelled_and_copied_as_curl(page, live, client, tmp_path):
    (tmp_path / "cat.png").write_bytes(encoded(picture()))
    page.fill("textarea", 'it\'s a "red" ball')
    page.set_input_files("input[type=file]", tmp_path / "cat.png")
    page.click("text=Generate")
    page.wait_for_selector(".job")
    hold_time(page)
    page.click("text=Copy as curl")
    page.wait_for_selector("text=Copied")
    page.clock.resume()
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert words[:2] == ["curl", f"http://127.0.0.1:{live}/generate"]
    copied = client.post("/generate", json=json.loads(words[words.index("-d") + 1])).json()["request"]
    first = client.get("/jobs?limit=2").json()["jobs"][1]["request"]
    assert copied["image"].pop("job_id") != first["image"].pop("job_id")
    assert copied == first
    page.locator("[data-action=cancel]").last.click()
    page.wait_for_selector(".job[data-status=cancelled]")


def test_text_is_shown_selected_where_the_browser_has_no_clipboard(page, client):
    client.post("/generate", json={"prompt": "a red ball"})
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.reload()
    page.click("text=Copy as curl")
    expect(page.locator("#copying")).to_be_visible()
    selected = page.locator("#copied-text").evaluate("t => t.value.slice(t.selectionStart, t.selectionEnd)")
    assert selected.startswith("curl http")
    assert '"a red ball"' in selected
    assert page.evaluate("document.activeElement.id") == "copied-text"
    page.keyboard.press("Escape")
    expect(page.locator("[data-action=curl]")).to_be_focused()
    assert page.locator("#problem").is_hidden()


def test_new_job_is_named_beside_the_button_and_can_be_gone_to(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.fill("textarea", "a red ball")
    page.click("text=Generate")
    expect(page.locator("#queued")).to_contain_text("Queued: “a red ball”.")
    expect(page.locator("#queued")).to_be_in_viewport()
    expect(page.locator("#news")).to_contain_text("Queued: “a red ball”.")
    expect(page.locator(".job")).not_to_be_in_viewport()
    page.click("#queued >> text=Show")
    expect(page.locator(".job")).to_be_in_viewport()
    expect(page.locator(".job")).to_be_focused()
    expect(page.locator("#queued")).to_be_hidden()
    page.click("text=New seed")
    expect(page.locator(".job:nth-child(2) .queued")).to_contain_text("Queued: “a red ball”.")
    expect(page.locator(".job:nth-child(2) .queued")).to_be_in_viewport()
    page.click(".job:nth-child(2) >> text=Show")
    expect(page.locator(".job:nth-child(1)")).to_be_focused()


def request_hidden_job(page):
    """Request a job that the filter hides."""
    page.select_option("[name=status]", "succeeded")
    page.wait_for_selector("text=No job matches")
    page.fill("textarea", "a red ball")
    page.click("text=Generate")
    expect(page.locator("#queued")).to_contain_text("The filter hides it.")


def test_new_job_that_the_filter_hides_can_be_gone_to(page):
    added = "new MutationObserver(() => { window.added = true; }).observe($jobs, { childList: true })"
    page.evaluate(added.replace("$jobs", "document.getElementById('jobs')"))
    request_hidden_job(page)
    assert not page.evaluate("window.added")
    page.click("#queued >> text=Show")
    expect(page.locator(".job")).to_be_focused()
    assert page.input_value("[name=status]") == ""


def test_search_that_waits_is_dropped_when_the_filter_is_removed(page):
    """It would load the list again, and the job that was gone to would lose the focus."""
    request_hidden_job(page)
    page.evaluate(
        """() => {
            document.getElementById("filter").dispatchEvent(new Event("input"));
            // Timers of one length keep their order.
            window.later = new Promise((done) => setTimeout(done, 300));
            document.querySelector("#queued button").click();
        }"""
    )
    expect(page.locator(".job")).to_be_focused()
    page.evaluate("window.later")
    assert page.evaluate("document.activeElement.matches('.job')")


def test_new_job_that_matches_the_filter_is_shown(page):
    page.fill("[name=text]", "ball")
    page.wait_for_selector("text=No job matches")
    page.fill("textarea", "a red ball")
    page.click("text=Generate")
    expect(page.locator("#queued p")).to_have_text("Queued: “a red ball”.")
    expect(page.locator(".job")).to_have_count(1)


def test_videos_of_one_request_are_listed_and_cancelled_together(page, worker, client):
    client.post("/generate", json={"prompt": "a red ball", "num_videos": 3})
    client.post("/generate", json={"prompt": "a blue cube"})
    page.reload()
    expect(page.locator(".job .batch:visible")).to_have_count(3)
    expect(page.locator(".job .prompt")).to_have_count(4)
    finish(worker)
    page.click("text=Video 2 of 3")
    expect(page.locator(".job .batch")).to_have_text(["Video 3 of 3", "Video 2 of 3", "Video 1 of 3"])
    expect(page.locator("#leave-batch")).to_be_focused()
    page.click("text=Cancel all")
    expect(page.locator(".job[data-status=cancelled]")).to_have_count(2)
    expect(page.locator(".job[data-status=succeeded]")).to_have_count(1)
    expect(page.locator("#cancel-batch")).to_be_hidden()
    page.click("text=Show all jobs")
    expect(page.locator(".job")).to_have_count(4)
    expect(page.locator("#batch")).to_be_hidden()
    expect(page.locator(".job[data-status=queued] .prompt")).to_have_text(["a blue cube"])


def test_warnings_do_not_look_like_errors(page):
    color = "element => getComputedStyle(element).color"
    warning, problem, text = (
        page.locator(name).evaluate(color) for name in ("#unknown-words", "#problem", "body")
    )
    assert warning == text != problem


def test_selected_videos_play_side_by_side_at_the_same_time(page, worker):
    for seed in (1, 2):
        page.fill("textarea", "a red ball")
        page.evaluate(f"document.forms.request.elements.seed.value = {seed}")
        page.click("text=Generate")
        page.wait_for_selector(f".seed:has-text('{seed}')")
        finish(worker, num_frames=17)
    page.wait_for_selector(".job:nth-child(2) video[src]")
    page.wait_for_selector(".job:nth-child(1) video[src]")
    for nth in (1, 2):
        page.click(f".job:nth-child({nth}) button:text('Compare')")
    page.click("text=Compare side by side")
    videos = page.locator("#compared video")
    assert sorted(page.locator("#compared figcaption").all_text_contents()) == ["seed 1", "seed 2"]
    times = "videos => videos.map(v => v.currentTime)"
    wait_until(lambda: min(videos.evaluate_all(times)) > 0.1)
    page.click("#compare-play")
    page.locator("#compare-time").evaluate(
        "range => { range.value = 0.5; range.dispatchEvent(new Event('input')) }"
    )
    assert videos.evaluate_all(times) == [0.5, 0.5]
    page.click("#compare-close")
    expect(videos).to_have_count(0)
    page.click("#compare-clear")
    assert page.locator("#compare-bar").is_hidden()


def test_search_finds_prompts_and_statuses(page, client):
    for text in ("a red ball", "a blue cube"):
        client.post("/generate", json={"prompt": text})
    page.fill("[name=text]", "CUBE")
    expect(page.locator(".job .prompt")).to_have_text("a blue cube")
    page.select_option("[name=status]", "succeeded")
    page.wait_for_selector("text=No job matches")
    page.fill("[name=text]", "")
    page.select_option("[name=status]", "queued")
    expect(page.locator(".job")).to_have_count(2)


def test_older_jobs_are_loaded_while_the_user_scrolls(page, client):
    ids = [client.post("/generate", json={"prompt": f"ball {number}"}).json()["id"] for number in range(45)]
    page.reload()
    page.wait_for_selector(".job:nth-child(20)")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector(".job:nth-child(45)")
    shown = page.locator(".job").evaluate_all("cards => cards.map(card => card.dataset.id)")
    assert shown == ids[::-1]
    assert page.locator("#more").is_hidden()
