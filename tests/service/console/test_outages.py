"""The console while Redis, the service or the network is gone, and afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import expect
from redis import Redis

from service.app import create_app
from stack.redis_server import RedisServer
from tests.pools import set_only_pool
from tests.servers import free_port, redis_program
from tests.service.conftest import CAPABILITY, serving, settings_for
from tests.service.console.conftest import opened

pytestmark = pytest.mark.browser


class Installation:
    """A Redis that keeps its data and a service, each of which can be stopped and started again."""

    def __init__(self, folder):
        self.redis = RedisServer(folder / "redis", redis_program())
        self._settings = settings_for(self.redis.url, folder, redis_patience_s=1)
        self.port = free_port()
        self._service = ExitStack()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    def start_service(self):
        self._service.enter_context(serving(create_app(self._settings), self.port))

    def stop_service(self):
        self._service.close()

    def __enter__(self):
        self.redis.start()
        with Redis.from_url(self.redis.url) as redis:
            set_only_pool(redis, CAPABILITY)
        self.start_service()
        return self

    def __exit__(self, *_):
        self.stop_service()
        self.redis.stop()

    def jobs(self):
        with Redis.from_url(self.redis.url) as redis:
            return redis.zcard("longcat:index:all")


@pytest.fixture
def installation(tmp_path) -> Iterator[Installation]:
    with Installation(tmp_path) as running:
        yield running


@pytest.fixture
def page(installation, browser):
    with opened(browser, installation.url) as page:
        page.fill("textarea", "first")
        page.click("text=Generate")
        page.wait_for_selector(".job .prompt:has-text('first')")
        yield page


def typed(page):
    return page.input_value("textarea"), page.input_value("[name=size]")


@pytest.mark.parametrize("what", ["redis", "service", "network"])
def test_page_says_so_keeps_what_was_typed_and_goes_on_by_itself(installation, page, what):
    page.fill("textarea", "second")
    page.fill("[name=size]", "64x96")
    end(what, installation, page)
    expected = {"redis": "Redis", "service": "the service cannot be reached", "network": "you are offline"}
    expect(page.locator("#health")).to_contain_text(expected[what])
    assert page.locator(".job").count() == 1
    page.click("text=Generate")
    expect(page.locator("#waiting-text")).to_contain_text("Not sent")
    assert typed(page) == ("second", "64x96")
    begin(what, installation, page)
    page.wait_for_selector(".job .prompt:has-text('second')")
    expect(page.locator("#waiting")).to_be_hidden()
    expect(page.locator("#health")).not_to_contain_text(expected[what])
    assert typed(page) == ("second", "64x96")
    assert installation.jobs() == 2
    (shown,) = [job for job in page.locator(".job").all() if "second" in (job.text_content() or "")]
    shown.locator("[data-action=cancel]").click()  # changes arrive again
    page.wait_for_selector(".job[data-status=cancelled] .prompt:has-text('second')")


def end(what, installation, page):
    if what == "redis":
        installation.redis.kill()
    elif what == "service":
        installation.stop_service()
    else:
        page.context.set_offline(True)


def begin(what, installation, page):
    if what == "redis":
        installation.redis.start()
    elif what == "service":
        installation.start_service()
    else:
        page.context.set_offline(False)


def test_error_of_the_page_is_no_outage(page):
    page.route("**/jobs?*", lambda route: route.fulfill(json={"jobs": None}))
    page.evaluate("window.dispatchEvent(new Event('online'))")
    expect(page.locator("#health")).to_contain_text("null")
    expect(page.locator("#health")).to_have_class("bad")


def lose_answers(page, path, count):
    """Let requests to a path through, but break the connection before the answer arrives."""
    left = [None] * count

    def handle(route):
        if left:
            left.pop()
            route.fetch()
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route(path, handle)


def test_request_whose_answer_was_lost_makes_one_job(installation, page):
    lose_answers(page, "**/generate", 2)
    page.fill("textarea", "second")
    page.click("text=Generate")
    page.wait_for_selector(".job .prompt:has-text('second')")
    assert installation.jobs() == 2
    page.click("text=Generate")  # on purpose
    expect(page.locator(".job .prompt:has-text('second')")).to_have_count(2)
    assert installation.jobs() == 3


def test_repeated_job_whose_answer_was_lost_makes_one_job(installation, page):
    lose_answers(page, "**/retry", 1)
    page.click("text=New seed")
    page.wait_for_selector("#problem:not([hidden])")
    page.click("text=New seed")
    expect(page.locator(".job")).to_have_count(2)
    assert installation.jobs() == 2


def test_user_can_stop_waiting(installation, page):
    installation.redis.kill()
    page.fill("textarea", "second")
    page.click("text=Generate")
    page.click("text=Do not send")
    expect(page.locator("#waiting")).to_be_hidden()
    installation.redis.start()
    page.wait_for_selector("#health:not(:has-text('Redis'))")
    expect(page.locator("button:text('Generate')")).to_be_enabled()
    assert installation.jobs() == 1


def test_refusal_is_shown_and_not_repeated(installation, page):
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    page.fill("[name=size]", "65x96")
    page.click("text=Generate")
    page.wait_for_selector("text=width: must be a multiple of 16")
    assert len(sent) == 1
    assert page.locator("#waiting").is_hidden()
