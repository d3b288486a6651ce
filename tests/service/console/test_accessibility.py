"""The console by keyboard and with a screen reader: axe-core finds nothing, and the focus is never lost."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from jobs.errors import OutOfMemory
from jobs.record import Progress
from service.keys.api_keys import ApiKeys
from tests.service.console.conftest import hold_time, opened
from tests.service.media import clip, encoded, picture

pytestmark = pytest.mark.browser

FOCUSED = "document.activeElement.dataset.action ?? document.activeElement.id"


def refresh(page):
    page.evaluate("window.dispatchEvent(new Event('online'))")


def finish(worker):
    worker.succeed(worker.claim(), video=clip(num_frames=17), thumbnail=encoded(picture(), "JPEG"))


def show_empty_list(page, **_):
    page.wait_for_selector("text=No videos yet")
    page.wait_for_selector("#examples button", state="attached")


def show_jobs_in_all_states(page, client, worker, **_):
    for prompt in ("finished", "failed", "running", "uploading", "waiting", "cancelled"):
        client.post("/generate", json={"prompt": prompt, "deadline_s": 239})
    finish(worker)
    holder = worker.job_store.holder
    holder.fail(worker.claim(), OutOfMemory("too large"), {})
    holder.renew_lease(worker.claim(), Progress(phase="denoise", step=2, num_steps=4, fraction=0.5))
    holder.begin_upload(worker.claim())
    client.post(f"/jobs/{client.get('/jobs').json()['jobs'][0]['id']}/cancel")
    refresh(page)
    for status in ("succeeded", "failed", "running", "uploading", "queued", "cancelled"):
        page.wait_for_selector(f".job[data-status={status}]")


def show_grid(page, **given):
    show_jobs_in_all_states(page, **given)
    page.click("#grid")
    page.click("[data-action=delete]:visible")


def show_all_options(page, client, **_):
    client.put("/presets/calm", json={"metadata": {"team": "x"}})
    page.evaluate("localStorage.setItem('prompts:', JSON.stringify(['a red ball']))")
    page.reload()
    page.click("text=More options")
    page.click("text=Presets and earlier prompts")
    page.click("#presets button:text('calm')")
    page.select_option("[name=task]", "long_video")


def show_edited_job(page, client, **_):
    client.post("/generate", json={"prompt": "a red ball"})
    refresh(page)
    page.click("text=Edit")


def show_batch(page, client, **_):
    client.post("/generate", json={"prompt": "a red ball", "num_videos": 2})
    refresh(page)
    page.click("text=Video 1 of 2")
    page.wait_for_selector("#batch:not([hidden])")


def show_queued_job(page, **_):
    page.fill("textarea", "a red ball")
    page.select_option("[name=status]", "succeeded")
    page.click("text=Generate")
    page.wait_for_selector("#queued:not([hidden])")


def show_account(page, redis, **_):
    key = ApiKeys(redis).create("me", admin=True)
    page.reload()
    page.fill("#key-text", key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#account:not([hidden])")


def show_refusal(page, **_):
    page.fill("textarea", "a red ball")
    page.fill("[name=size]", "65x96")
    page.click("text=Generate")
    page.wait_for_selector("#problem:not([hidden])")


def show_comparison(page, client, worker, **_):
    for seed in (1, 2):
        client.post("/generate", json={"prompt": "a red ball", "seed": seed, "num_frames": 17})
        finish(worker)
    refresh(page)
    for nth in (1, 2):
        page.click(f".job:nth-child({nth}) [data-action=compare]")
    page.click("#compare-open")
    page.wait_for_selector("#comparison[open]")


def show_selection(page, **given):
    show_comparison(page, **given)
    page.keyboard.press("Escape")
    expect(page.locator("#comparison")).to_be_hidden()


def show_sign_in(page, redis, **_):
    ApiKeys(redis).create("me")
    page.reload()
    page.wait_for_selector("#key:not([hidden])")
    page.fill("#key-text", "lc_wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-problem:not([hidden])")


def show_nothing_found(page, **_):
    page.fill("[name=text]", "nothing")
    page.wait_for_selector("text=No job matches")


def show_outage(page, **_):
    page.context.set_offline(True)
    page.fill("textarea", "a red ball")
    page.click("text=Generate")
    page.wait_for_selector("#waiting:not([hidden])")


def show_text_to_copy(page, client, **_):
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    client.post("/generate", json={"prompt": "a red ball"})
    refresh(page)
    page.click("text=Copy as curl")
    page.wait_for_selector("#copying[open]")


STATES = [
    show_empty_list,
    show_jobs_in_all_states,
    show_grid,
    show_all_options,
    show_edited_job,
    show_batch,
    show_queued_job,
    show_account,
    show_refusal,
    show_selection,
    show_comparison,
    show_sign_in,
    show_nothing_found,
    show_outage,
    show_text_to_copy,
]


@pytest.mark.parametrize("show", STATES, ids=lambda show: show.__name__.removeprefix("show_"))
def test_axe_finds_nothing(live, browser, client, worker, redis, axe, show):
    with opened(browser, f"http://127.0.0.1:{live}/", bypass_csp=True, reduced_motion="reduce") as page:
        show(page, client=client, worker=worker, redis=redis)
        page.evaluate(axe)
        found = {}
        for scheme in ("light", "dark"):
            for width, height in ((1280, 800), (390, 844)):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": height})
                for problem in page.evaluate("axe.run().then(result => result.violations)"):
                    nodes = [node["html"][:200] for node in problem["nodes"]]
                    found[f"{scheme} {width} {problem['id']}: {problem['help']}"] = nodes
        assert found == {}, json.dumps(found, indent=1)


def test_axe_would_find_a_problem(page, axe):
    page.evaluate(f"() => {{ {axe} }}")
    page.evaluate("document.querySelector('textarea').closest('label').outerHTML = '<textarea></textarea>'")
    found = page.evaluate("axe.run().then(result => result.violations.map(problem => problem.id))")
    assert "label" in found


def tab_to(page, action):
    """Press Tab until an action of a job has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(FOCUSED) == action:
            return
    raise AssertionError(f"Tab does not reach {action}")


class TestKeyboard:
    @pytest.fixture
    def finished(self, page, client, worker):
        """Show two finished jobs."""
        for seed in (1, 2):
            client.post("/generate", json={"prompt": "a red ball", "seed": seed})
            finish(worker)
        refresh(page)
        page.wait_for_selector(".job:nth-child(2)[data-status=succeeded]")

    @pytest.mark.usefixtures("finished")
    def test_every_action_is_reached_with_a_visible_focus(self, page):
        wanted = page.locator(".job:first-child [data-action]:visible").evaluate_all(
            "buttons => buttons.map(button => button.dataset.action)"
        )
        reached = set()
        page.focus("#jobs-title")
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(page.evaluate(FOCUSED))
            tag, outline = page.evaluate(
                "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]"
            )
            # the browser marks the controls of a video itself; after the last element, the body has the focus
            assert outline != "none" or tag in {"VIDEO", "BODY"}, tag
        assert {*wanted, "grid"} <= reached

    @pytest.mark.usefixtures("finished")
    def test_focus_moves_to_the_next_job_when_one_is_deleted(self, page):
        hold_time(page)  # or the buttons ask for confirmation for a few seconds only
        page.focus(".job:first-child [data-action=delete]")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        expect(page.locator(".job")).to_have_count(1)
        assert page.evaluate("document.activeElement.closest('.job') !== null")
        page.focus("[data-action=delete]")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        expect(page.locator(".job")).to_have_count(0)
        assert page.evaluate(FOCUSED) == "jobs-title"

    @pytest.mark.usefixtures("finished")
    def test_escape_takes_back_a_deletion(self, page):
        hold_time(page)
        page.focus(".job:first-child [data-action=delete]")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Delete permanently?")
        page.keyboard.press("Escape")
        expect(page.locator(".job:first-child [data-action=delete]")).to_have_text("Delete")

    @pytest.mark.usefixtures("finished")
    def test_escape_closes_the_comparison_and_returns_the_focus(self, page):
        for nth in (1, 2):
            page.focus(f".job:nth-child({nth}) [data-action=compare]")
            page.keyboard.press("Enter")
        assert page.evaluate(FOCUSED) == "compare"
        page.focus("#compare-open")
        page.keyboard.press("Enter")
        page.wait_for_selector("#comparison[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#comparison", state="hidden")
        assert page.evaluate(FOCUSED) == "compare-open"
        page.focus("#compare-clear")
        page.keyboard.press("Enter")
        assert page.evaluate(FOCUSED) == "compare"

    def test_focus_stays_on_the_job_when_its_action_disappears(self, page, client, worker):
        client.post("/generate", json={"prompt": "a red ball"})
        refresh(page)
        page.wait_for_selector(".job")
        tab_to(page, "cancel")
        finish(worker)
        page.wait_for_selector(".job[data-status=succeeded]")
        assert page.evaluate("document.activeElement.closest('.job') !== null")

    def test_focus_stays_on_the_job_when_it_is_cancelled(self, page, client):
        client.post("/generate", json={"prompt": "a red ball"})
        refresh(page)
        page.wait_for_selector(".job")
        tab_to(page, "cancel")
        page.keyboard.press("Enter")
        page.wait_for_selector(".job[data-status=cancelled]")
        page.wait_for_function("document.activeElement.closest('.job') !== null")

    def test_button_keeps_the_focus_after_its_request(self, page):
        page.fill("textarea", "a red ball")
        page.focus("text=Generate")
        page.keyboard.press("Enter")
        page.wait_for_selector(".job")
        page.wait_for_function("document.activeElement.textContent === 'Generate'")

    def test_escape_closes_the_form_for_the_key(self, page):
        page.focus("#keys")
        page.keyboard.press("Enter")
        assert page.evaluate(FOCUSED) == "key-text"
        page.keyboard.press("Escape")
        assert page.locator("#key").is_hidden()
        assert page.evaluate(FOCUSED) == "keys"

    def test_form_for_the_key_stays_closed_after_escape(self, page, redis):
        ApiKeys(redis).create("me")
        refresh(page)
        page.wait_for_selector("#key:not([hidden])")
        page.focus("#key-text")
        page.keyboard.press("Escape")
        with page.expect_response("**/jobs?*"):
            refresh(page)
        page.wait_for_selector("text=Sign in with your API key to see your jobs")
        assert page.locator("#key").is_hidden()

    def test_focus_stays_in_the_list_when_a_preset_is_deleted(self, page, client):
        for name in ("a", "b"):
            client.put(f"/presets/{name}", json={})
        page.click("text=Presets and earlier prompts")
        page.focus("[aria-label='Delete “a”']")
        page.keyboard.press("Enter")
        expect(page.locator("#presets li")).to_have_count(1)
        assert page.evaluate("document.activeElement.ariaLabel") == "Delete “b”"
        page.keyboard.press("Enter")
        expect(page.locator("#presets li")).to_have_count(0)
        assert page.evaluate(FOCUSED) == "preset-name"


def test_unchanged_health_is_not_announced_again(page):
    page.wait_for_selector("#health:not(:has-text('connecting'))")
    page.evaluate(
        """() => {
          window.changes = 0;
          const health = document.getElementById("health");
          new MutationObserver(() => { changes += 1; }).observe(health, { childList: true });
        }"""
    )
    with page.expect_response("**/readyz*"):
        refresh(page)
    with page.expect_response("**/readyz*"):
        refresh(page)
    assert page.evaluate("changes") == 0
