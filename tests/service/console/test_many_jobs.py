"""The console with a thousand jobs: what the page holds and what it asks for are bounded."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from jobs.errors import GenerationFailed
from tests.service.console.conftest import hold_time, opened
from tests.service.media import clip, encoded, picture
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

NUM_JOBS = 1020
NUM_FEWER_JOBS = 120  # enough to leave most cards empty
PAGE_SIZE = 20
OLDER_PAGE_SIZE = 50
MAX_FILLED = 60  # cards: those within 1,200 pixels of the screen
MAX_NODES_OF_CARD = 40
COUNT_NODES = "document.getElementsByTagName('*').length"
REFRESH = "window.dispatchEvent(new Event('online'))"
FILLED = ".job:has(.prompt)"


@pytest.fixture
def requests(page):
    """Return a list that gets the path and query of each request of the page."""
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url.partition("//")[2].partition("/")[2]))
    return sent


@pytest.fixture
def jobs(client, worker, copy_job, request):
    """Create finished jobs and return their ids, the newest first."""
    client.post("/generate", json={"prompt": "a red ball"})
    claim = worker.claim()
    worker.succeed(claim, video=clip(), thumbnail=encoded(picture(), "JPEG"))
    count = getattr(request, "param", NUM_FEWER_JOBS)
    return [*copy_job(claim.job.id, count - 1), claim.job.id]


def shown_ids(page):
    return page.locator(".job").evaluate_all("cards => cards.map(card => card.dataset.id)")


def scroll_to_the_end(page):
    def is_complete():
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        return page.locator("#more").is_hidden()

    wait_until(is_complete, every_s=0.1)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")


def streams(page, requests):
    """Return the ids of the jobs of each event stream that was opened."""
    page.evaluate("0")  # lets Playwright report what was sent meanwhile
    return [set(path.partition("jobs=")[2].split(",")) for path in requests if path.startswith("events")]


def test_first_jobs_take_one_request_which_is_the_first(page, jobs, requests):
    page.reload()
    page.wait_for_selector(f".job:nth-child({PAGE_SIZE})")
    calls = [path for path in requests if path and not path.startswith("console/")]
    lists = [path for path in calls if path.startswith("jobs?")]
    assert lists[0] == f"jobs?limit={PAGE_SIZE}"
    assert {path for path in calls if path.startswith("presets")} == set()
    assert shown_ids(page)[:PAGE_SIZE] == jobs[:PAGE_SIZE]


@pytest.mark.parametrize("jobs", [NUM_JOBS], indirect=True)
def test_page_holds_few_nodes_and_each_page_of_jobs_takes_one_request(page, jobs, requests):
    page.reload()
    page.wait_for_selector(f".job:nth-child({PAGE_SIZE})")
    without_cards = page.evaluate(COUNT_NODES) - page.evaluate("document.querySelectorAll('#jobs *').length")
    scroll_to_the_end(page)
    assert shown_ids(page) == jobs
    expect(page.locator(f".job:nth-child({NUM_JOBS}) .prompt")).to_have_text("a red ball")
    wait_until(lambda: page.locator(FILLED).count() <= MAX_FILLED)
    assert page.evaluate(COUNT_NODES) <= without_cards + NUM_JOBS + MAX_FILLED * MAX_NODES_OF_CARD
    pages = [path for path in requests if path.startswith("jobs?") and "after=" in path]
    assert len(pages) == len(set(pages)) == (NUM_JOBS - PAGE_SIZE) / OLDER_PAGE_SIZE
    assert streams(page, requests) == []


def test_cards_keep_their_place_when_they_are_emptied_and_filled(page, jobs):
    page.reload()
    page.wait_for_selector(f".job:nth-child({PAGE_SIZE})")
    scroll_to_the_end(page)
    wait_until(lambda: page.locator(FILLED).count() <= MAX_FILLED)
    height = page.evaluate("document.documentElement.scrollHeight")
    first = page.locator(".job").first
    expect(first.locator(".prompt")).to_have_count(0)
    page.evaluate("scrollTo(0, 0)")
    expect(first.locator(".prompt")).to_have_text("a red ball")
    assert page.evaluate("document.documentElement.scrollHeight") == height
    wait_until(lambda: page.locator(FILLED).count() <= MAX_FILLED)


@pytest.mark.parametrize("change", ["grid", "width"])
def test_other_layout_measures_empty_cards_again(page, jobs, change):
    page.reload()
    page.wait_for_selector(f".job:nth-child({PAGE_SIZE})")
    wait_until(lambda: page.locator(".job").count() > PAGE_SIZE or page.evaluate("scrollBy(0, 9999)"))
    wait_until(lambda: page.locator(FILLED).count() < page.locator(".job").count())
    heights = "cards => cards.map(card => card.offsetHeight)"
    empty = page.locator(".job:not(:has(.prompt))")
    before = {*empty.evaluate_all(heights)}
    if change == "grid":
        page.click("#grid")
    else:
        page.set_viewport_size({"width": 390, "height": 844})
    wait_until(lambda: before.isdisjoint(empty.evaluate_all(heights)))


def test_running_jobs_and_those_on_the_screen_are_watched(page, client, worker, copy_job, requests):
    first = client.post("/generate", json={"prompt": "the oldest"}).json()["id"]
    running = worker.claim().job.id
    assert running == first
    waiting = client.post("/generate", json={"prompt": "waiting"}).json()["id"]
    copies = copy_job(waiting, NUM_FEWER_JOBS)
    requests.clear()
    page.reload()
    page.wait_for_selector(f".job:nth-child({PAGE_SIZE})")
    wait_until(lambda: streams(page, requests))
    scroll_to_the_end(page)
    wait_until(lambda: running in streams(page, requests)[-1])
    assert max(map(len, streams(page, requests))) <= 50
    assert len(streams(page, requests)) < 30
    worker.job_store.client.cancel(waiting)  # the one beside it is on the screen, too
    page.wait_for_selector(f"[data-id='{waiting}'][data-status=cancelled]")
    page.evaluate("scrollTo(0, 0)")
    wait_until(lambda: copies[0] in streams(page, requests)[-1])


def test_deleted_job_beyond_the_first_page_does_not_end_the_watching(page, client, worker, copy_job):
    gone = client.post("/generate", json={"prompt": "gone"}).json()["id"]
    kept = client.post("/generate", json={"prompt": "kept"}).json()["id"]
    claim = worker.claim()
    worker.job_store.holder.fail(claim, GenerationFailed("no"), {})
    copy_job(gone, 30)
    page.reload()
    page.wait_for_selector(f".job:nth-child({PAGE_SIZE})")
    scroll_to_the_end(page)
    page.wait_for_selector(f"[data-id='{gone}']")
    client.delete(f"/jobs/{gone}")
    new = client.post("/generate", json={"prompt": "new"}).json()["id"]
    page.evaluate(REFRESH)  # watches the new job, too
    page.wait_for_selector(f"[data-id='{new}']")
    wait_until(lambda: page.evaluate(REFRESH) or page.locator(f"[data-id='{gone}']").count() == 0, every_s=1)
    client.post(f"/jobs/{kept}/cancel")
    page.wait_for_selector(f"[data-id='{kept}'][data-status=cancelled]")


def test_job_that_was_deleted_elsewhere_disappears_when_it_is_used(page, client, jobs):
    page.reload()
    page.wait_for_selector(f".job:nth-child({PAGE_SIZE})")
    scroll_to_the_end(page)
    client.delete(f"/jobs/{jobs[-1]}")
    page.click(f"[data-id='{jobs[-1]}'] [data-action=repeat]")
    page.wait_for_selector("#problem:has-text('no such job')")
    expect(page.locator(f"[data-id='{jobs[-1]}']")).to_have_count(0)


def test_many_new_jobs_leave_no_gap_in_the_list(page, client, copy_job):
    old = client.post("/generate", json={"prompt": "old"}).json()["id"]
    page.wait_for_selector(f"[data-id='{old}']")
    copies = copy_job(old, 50)
    page.evaluate(REFRESH)
    page.wait_for_selector(f"[data-id='{copies[0]}']")
    scroll_to_the_end(page)
    assert shown_ids(page) == [*copies, old]


@pytest.mark.parametrize("jobs", [NUM_JOBS], indirect=True)
def test_search_that_finds_nothing_in_many_jobs_says_so(page, jobs):
    page.fill("[name=text]", "nothing")
    expect(page.locator("#nothing")).to_be_visible()
    expect(page.locator("#more")).to_be_hidden()


def test_jobs_that_end_together_are_announced_in_one_sentence(live, browser, client):
    with opened(browser, f"http://127.0.0.1:{live}/") as page:
        ids = [
            client.post("/generate", json={"prompt": f"ball {number}"}).json()["id"] for number in range(8)
        ]
        page.evaluate(REFRESH)
        page.wait_for_selector(".job:nth-child(8)")
        page.evaluate(
            """() => {
              window.told = [];
              const news = document.getElementById("news");
              new MutationObserver(() => told.push(news.textContent)).observe(news, { childList: true });
            }"""
        )
        hold_time(page)
        for job_id in ids:
            client.post(f"/jobs/{job_id}/cancel")
        expect(page.locator(".job[data-status=cancelled]")).to_have_count(8)
        page.clock.run_for(1000)
        wait_until(lambda: page.evaluate("told") == ["8 jobs: was cancelled"])
