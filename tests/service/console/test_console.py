"""The console: its files, and its use in a browser."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from playwright.sync_api import expect

from jobs.record import Progress
from jobs.registration import POOLS_KEY, GroupRegistration
from model.spec.params import MAX_SEED
from service.console import routes
from service.keys.api_keys import ApiKeys
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY
from tests.service.console.conftest import hold_time, opened
from tests.service.media import clip, encoded, picture
from tests.waiting import wait_until

FOLDER = Path(routes.__file__).parent
HOUR_S = 3600


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/console/style.css", "text/css"),
        *((f"/console/{path.name}", "text/javascript") for path in sorted(FOLDER.glob("*.js"))),
    ],
)
def test_files_are_served(client, path, media_type):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(media_type)
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_other_files_are_not_served(client):
    for path in ("/console/__init__.py", "/console/", "/console/..%2fsettings.py"):
        assert client.get(path).status_code in {404, 422}


def test_page_loads_nothing_from_other_hosts():
    for path in FOLDER.glob("*.*"):
        assert not re.search(r"(src|href|import|url)\W+https?://", path.read_text()), path


def test_elements_and_actions_that_the_scripts_use_exist():
    page = (FOLDER / "index.html").read_text()
    scripts = "".join(path.read_text() for path in FOLDER.glob("*.js"))
    for name in set(re.findall(r'\$\("([\w-]+)"\)', scripts)):
        assert f'id="{name}"' in page, name
    for name in set(re.findall(r'part\("\.(\w+)"\)', scripts)):
        assert f'class="{name}"' in page, name
    actions = re.search(r"const ACTIONS = \{(.*?)^\};", scripts, re.DOTALL | re.MULTILINE)
    assert actions
    assert set(re.findall(r'data-action="(\w+)"', page)) == set(
        re.findall(r"^  (\w+):", actions[1], re.MULTILINE)
    )


def contrast(*colors: str) -> float:
    """Return the contrast ratio of two colours by WCAG."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    darker, lighter = sorted(luminance(color) for color in colors)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.browser
class TestInABrowser:
    @pytest.fixture
    def page(self, live, browser):
        permissions = ["clipboard-read", "clipboard-write"]
        with opened(browser, f"http://127.0.0.1:{live}/", permissions=permissions) as page:
            yield page

    def test_user_requests_watches_and_plays_a_video(self, page, worker):
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

    def test_job_with_a_deadline_shows_whether_it_is_met(self, page, worker, redis, client):
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

    def test_job_shows_what_it_costs(self, page, worker, redis, client):
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

    def test_usage_of_each_day_is_shown(self, page, worker, client):
        page.click("summary:text('Usage')")
        expect(page.locator("#usage-note")).to_have_text("Nothing was used in the last 31 days.")
        client.post("/generate", json={"prompt": "a red ball"})
        self.finish(worker)
        (used,) = client.get("/usage").json()["usage"]
        page.click("summary:text('Usage')")
        page.click("summary:text('Usage')")
        expect(page.locator("#used li")).to_have_text(f"{used['day']} · {used['gpu_s']:.1f} GPU s")

    def test_user_signs_in_and_out(self, page, worker, redis):
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

    def test_page_shows_that_a_session_has_ended(self, page, redis):
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

    def test_segments_are_shown_for_long_videos_only(self, page):
        assert page.locator("[name=num_segments]").is_hidden()
        page.select_option("[name=task]", "long_video")
        page.fill("textarea", "a red ball\nit rolls away")
        page.fill("[name=num_segments]", "2")
        page.click("text=Generate")
        page.wait_for_selector("text=long video")
        assert "it rolls away" in page.text_content(".job .prompt")

    def test_all_controls_are_reachable_by_keyboard(self, page):
        seen = []
        for _ in range(14):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate("document.activeElement.name || document.activeElement.textContent.trim()")
            )
        assert seen[:7] == ["API key", "API", "prompt", "task", "size", "file", "More options"]
        assert "Generate" in seen

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
    def test_page_fits_the_screen_with_readable_contrast(self, page, worker, scheme, width, height, tmp_path):
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

    def test_refused_request_shows_the_reason(self, page, tmp_path):
        (tmp_path / "cat.png").write_bytes(encoded(picture()))
        page.fill("textarea", "it moves")
        page.set_input_files("input[type=file]", tmp_path / "cat.png")
        page.fill("[name=size]", "65 x 96")
        page.click("text=Generate")
        page.wait_for_selector("text=width: must be a multiple of 16")
        page.fill("[name=size]", "96 x 64")
        page.click("text=Generate")
        page.wait_for_selector("text=image to video · 96×64")

    def test_error_of_an_earlier_attempt_does_not_stay(self, page):
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

    def test_button_that_generates_is_whole_with_all_options_open(self, page):
        page.set_viewport_size({"width": 1440, "height": 900})
        page.get_by_text("More options").click()
        expect(page.get_by_role("button", name="Generate")).to_be_in_viewport(ratio=1)

    def test_sizes_are_those_of_the_checkpoint(self, page, order):
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

    def test_what_was_entered_survives_a_reload(self, page):
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

    def test_file_that_the_browser_cannot_show_has_no_preview(self, page, tmp_path):
        (tmp_path / "photo.png").write_bytes(b"no image")
        page.set_input_files("input[type=file]", tmp_path / "photo.png")
        page.wait_for_selector("#preview", state="hidden")
        assert page.text_content("#file-name") == "photo.png"

    def test_empty_list_offers_example_prompts(self, page):
        page.wait_for_selector("text=No videos yet")
        page.locator(".example").first.click()
        assert page.input_value("textarea") == page.locator(".example").first.text_content()
        page.click("text=Generate")
        page.wait_for_selector("text=position 1 in the queue")
        assert page.locator("#empty").is_hidden()

    def test_page_says_that_no_worker_has_started(self, page, redis):
        expect(page.locator("#health")).to_have_text("no worker is ready; new jobs wait")
        expect(page.locator("#examples-title")).to_be_visible()
        redis.delete(POOLS_KEY)
        page.reload()
        expect(page.locator("#health")).to_have_text(
            "no worker is ready; jobs are accepted once one has started"
        )
        expect(page.locator("#examples-title")).to_be_hidden()

    def test_chosen_file_is_previewed_and_can_be_removed(self, page, tmp_path):
        (tmp_path / "cat.png").write_bytes(encoded(picture()))
        height = page.locator("#drop").bounding_box()["height"]
        page.set_input_files("input[type=file]", tmp_path / "cat.png")
        page.wait_for_selector("#preview:not([hidden])")
        assert page.text_content("#file-name") == "cat.png"
        assert page.locator("#drop").bounding_box()["height"] == height
        page.click("text=Remove")
        assert page.locator("#preview").is_hidden()
        assert page.evaluate("document.activeElement.name") == "file"

    def test_changes_are_announced_and_deletion_is_confirmed(self, page, worker, client):
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

    def test_reduced_motion_disables_transitions(self, page):
        page.emulate_media(reduced_motion="reduce")
        assert page.evaluate("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"

    def test_job_can_be_cancelled_and_copied_as_curl(self, page, live, client, tmp_path):
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

    def test_text_is_shown_selected_where_the_browser_has_no_clipboard(self, page, client):
        client.post("/generate", json={"prompt": "a red ball"})
        page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        page.reload()
        page.click("text=Copy as curl")
        expect(page.locator("#copying")).to_be_visible()
        selected = page.locator("#copied-text").evaluate(
            "t => t.value.slice(t.selectionStart, t.selectionEnd)"
        )
        assert selected.startswith("curl http")
        assert '"a red ball"' in selected
        assert page.evaluate("document.activeElement.id") == "copied-text"
        page.keyboard.press("Escape")
        expect(page.locator("[data-action=curl]")).to_be_focused()
        assert page.locator("#problem").is_hidden()

    def finish(self, worker, **video):
        worker.succeed(worker.claim(), video=clip(**video), thumbnail=encoded(picture(), "JPEG"))

    def test_user_repeats_a_job_with_another_seed(self, page, worker, client):
        page.fill("textarea", "a red ball")
        page.fill("[name=size]", "64x96")
        page.click("text=Generate")
        page.click("text=New seed")
        page.wait_for_selector(".job:nth-child(2)")
        repeated, first = (job["request"] for job in client.get("/jobs").json()["jobs"])
        assert repeated.pop("seed") != first.pop("seed")
        assert repeated == first

    def test_new_job_is_named_beside_the_button_and_can_be_gone_to(self, page):
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

    def test_new_job_that_the_filter_hides_can_be_gone_to(self, page):
        page.select_option("[name=status]", "succeeded")
        page.wait_for_selector("text=No job matches")
        added = "new MutationObserver(() => { window.added = true; }).observe($jobs, { childList: true })"
        page.evaluate(added.replace("$jobs", "document.getElementById('jobs')"))
        page.fill("textarea", "a red ball")
        page.click("text=Generate")
        expect(page.locator("#queued")).to_contain_text("The filter hides it.")
        assert not page.evaluate("window.added")
        page.click("#queued >> text=Show")
        expect(page.locator(".job")).to_be_focused()
        assert page.input_value("[name=status]") == ""

    def test_new_job_that_matches_the_filter_is_shown(self, page):
        page.fill("[name=text]", "ball")
        page.wait_for_selector("text=No job matches")
        page.fill("textarea", "a red ball")
        page.click("text=Generate")
        expect(page.locator("#queued p")).to_have_text("Queued: “a red ball”.")
        expect(page.locator(".job")).to_have_count(1)

    def test_seed_that_a_number_cannot_hold_stays_exact(self, page, live, client):
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

    def test_whole_seed_is_visible(self, page):
        page.click("text=More options")
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            page.fill("[name=seed]", str(MAX_SEED))
            assert page.locator("[name=seed]").evaluate("field => field.scrollWidth <= field.clientWidth")

    def test_seed_of_an_edited_job_is_shown_and_can_be_made_random(self, page, client):
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

    def test_user_requests_several_videos_by_a_time(self, page, client):
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

    def test_videos_of_one_request_are_listed_and_cancelled_together(self, page, worker, client):
        client.post("/generate", json={"prompt": "a red ball", "num_videos": 3})
        client.post("/generate", json={"prompt": "a blue cube"})
        page.reload()
        expect(page.locator(".job .batch:visible")).to_have_count(3)
        expect(page.locator(".job .prompt")).to_have_count(4)
        self.finish(worker)
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

    def test_user_edits_the_request_of_a_job(self, page, client, tmp_path):
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

    def test_options_of_a_refinement_are_requested_edited_and_left_out(self, page, worker, client):
        page.fill("textarea", "a red ball")
        page.click("text=More options")
        page.check("[name=refine]")
        page.check("[name=spatial_refine_only]")
        page.fill("[name=t_thresh]", "0.3")
        page.click("text=Generate")
        page.wait_for_selector(".job")
        self.finish(worker)
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

    def test_frames_that_are_taken_over_can_be_chosen(self, page, worker, client):
        client.post("/generate", json={"prompt": "a red ball", "num_frames": 17})
        self.finish(worker, num_frames=17)
        page.reload()
        expect(page.locator("[name=num_condition_frames]")).not_to_have_attribute("placeholder", "default")
        page.click("button:text('Continue')")
        page.click("text=More options")
        page.fill("[name=num_condition_frames]", "5")
        page.click("text=Generate")
        page.wait_for_selector(".job:nth-child(2)")
        assert client.get("/jobs").json()["jobs"][0]["request"]["num_condition_frames"] == 5

    def test_model_can_be_chosen_if_there_are_several(self, page, redis, client):
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

    def test_admin_filters_jobs_by_owner(self, page, redis, client):
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

    def test_warnings_do_not_look_like_errors(self, page):
        color = "element => getComputedStyle(element).color"
        warning, problem, text = (
            page.locator(name).evaluate(color) for name in ("#unknown-words", "#problem", "body")
        )
        assert warning == text != problem

    def test_edited_request_keeps_what_the_form_has_no_field_for(self, page, client):
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
    def test_edited_request_keeps_its_negative_prompt(self, page, client, given):
        client.post("/generate", json={"prompt": "a red ball", **given})
        page.reload()
        expect(page.locator("#examples button")).not_to_have_count(0)  # the defaults are known
        page.click("text=Edit")
        assert page.input_value("[name=negative_prompt]") == ""
        page.click("text=Generate")
        page.wait_for_selector(".job:nth-child(2)")
        expected = given.get("negative_prompt", "blurred")
        assert [job["request"]["negative_prompt"] for job in client.get("/jobs").json()["jobs"]] == [
            expected
        ] * 2

    def test_video_of_an_edited_request_can_be_refined(self, page, worker, client):
        client.post("/generate", json={"prompt": "a red ball", "negative_prompt": "rain", "num_frames": 17})
        self.finish(worker, num_frames=17)
        page.reload()
        expect(page.locator("#examples button")).not_to_have_count(0)
        page.click("text=Edit")
        page.click("button:text('Refine')")
        page.click("text=Generate")
        page.wait_for_selector(".task:has-text('refine')")

    def test_refined_video_is_not_offered_for_refinement(self, page, worker, client):
        for options in ({}, {"refine": True}):
            client.post("/generate", json={"prompt": "a red ball", **options})
            self.finish(worker)
        page.reload()
        expect(page.locator("video[src]")).to_have_count(2)
        assert page.locator(".job:nth-child(1) [data-action=refine]").is_hidden()
        assert page.locator(".job:nth-child(2) [data-action=refine]").is_visible()

    def test_user_continues_and_refines_a_video_and_starts_from_its_frame(self, page, worker, client):
        page.fill("textarea", "a red ball")
        page.click("text=Generate")
        page.wait_for_selector(".job")
        self.finish(worker, num_frames=17)
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

    def test_user_goes_to_the_job_whose_video_was_used(self, page, worker, client):
        made = client.post("/generate", json={"prompt": "a red ball", "num_frames": 17}).json()
        self.finish(worker, num_frames=17)
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

    def test_selected_videos_play_side_by_side_at_the_same_time(self, page, worker):
        for seed in (1, 2):
            page.fill("textarea", "a red ball")
            page.evaluate(f"document.forms.request.elements.seed.value = {seed}")
            page.click("text=Generate")
            page.wait_for_selector(f".seed:has-text('{seed}')")
            self.finish(worker, num_frames=17)
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
        assert videos.count() == 0
        page.click("#compare-clear")
        assert page.locator("#compare-bar").is_hidden()

    def test_search_finds_prompts_and_statuses(self, page, client):
        for text in ("a red ball", "a blue cube"):
            client.post("/generate", json={"prompt": text})
        page.fill("[name=text]", "CUBE")
        expect(page.locator(".job .prompt")).to_have_text("a blue cube")
        page.select_option("[name=status]", "succeeded")
        page.wait_for_selector("text=No job matches")
        page.fill("[name=text]", "")
        page.select_option("[name=status]", "queued")
        expect(page.locator(".job")).to_have_count(2)

    def test_older_jobs_are_loaded_while_the_user_scrolls(self, page, client):
        ids = [
            client.post("/generate", json={"prompt": f"ball {number}"}).json()["id"] for number in range(45)
        ]
        page.reload()
        page.wait_for_selector(".job:nth-child(20)")
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_selector(".job:nth-child(45)")
        shown = page.locator(".job").evaluate_all("cards => cards.map(card => card.dataset.id)")
        assert shown == ids[::-1]
        assert page.locator("#more").is_hidden()

    def test_all_watched_jobs_share_one_connection(self, page, client, worker):
        opened = []
        page.on("request", lambda request: opened.append(request.url))
        jobs = [client.post("/generate", json={"prompt": f"ball {n}"}).json()["id"] for n in range(3)]
        opened.clear()  # the page may have loaded some of them before
        page.reload()
        page.wait_for_selector(".job:nth-child(3)")
        self.finish(worker)
        page.wait_for_selector(".job[data-status=succeeded]")
        streams = [url.partition("jobs=")[2] for url in opened if "/events" in url]
        assert set(streams[0].split(",")) == set(jobs)

    def test_words_that_the_checkpoint_does_not_know_are_named(self, page, client, redis):
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

    def test_preset_is_kept_by_the_service_and_earlier_prompts_by_the_browser(self, page, client, browser):
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

    def test_long_earlier_prompt_leaves_room_for_its_buttons(self, page):
        page.evaluate("localStorage.setItem('prompts:', JSON.stringify(['a red ball '.repeat(30)]))")
        page.reload()
        page.click("text=Presets and earlier prompts")
        forget = page.locator("#prompts .forget").bounding_box()
        around = page.locator("#prompts").bounding_box()
        assert forget["x"] + forget["width"] <= around["x"] + around["width"]
        page.click("#prompts .forget")
        expect(page.locator("#prompts li")).to_have_count(0)

    def test_options_of_a_preset_without_a_field_are_shown_sent_and_removed(self, page, client):
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

    def test_presets_of_an_earlier_release_move_to_the_service_once(self, page, client):
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

    def test_refused_preset_is_explained(self, page):
        page.click("text=Presets and earlier prompts")
        page.fill("#preset-name", "a/b")
        page.click("text=Save preset")
        page.wait_for_selector("#problem:has-text('without slashes')")
        page.fill("#preset-name", "ab")
        page.click("text=Save preset")
        page.wait_for_selector("#presets button:text('ab')")
        assert page.locator("#problem").is_hidden()
