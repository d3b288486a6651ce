"""Attacks by foreign pages in a real browser: forms, fetch, embedding, DNS rebinding, cookie theft."""

from __future__ import annotations

import json

import pytest

from service.keys.api_keys import ApiKeys
from tests.conftest import BROWSER_TIMEOUT_MS, CHROMIUM_FLAGS
from tests.service.hosts import host
from tests.service.media import clip, encoded, picture

pytestmark = pytest.mark.browser

ATTACK = """
async (url) => {
  const form = (fields) => {
    const body = new FormData();
    for (const [name, value] of Object.entries(fields)) body.append(name, value);
    return body;
  };
  const order = form({ prompt: "from elsewhere", priority: "high", webhook_url: "https://evil.example" });
  const send = (path, options) =>
    fetch(url + path, { mode: "no-cors", credentials: "include", ...options }).catch(() => null);
  await send("/generate", { method: "POST", body: order });
  await send("/v1/videos", { method: "POST", body: order });
  await send("/generate", { method: "POST", body: JSON.stringify({ prompt: "from elsewhere" }) });
  await send("/session", { method: "POST" });
}
"""
SUBMIT = """
([url, fields]) => {
  const form = document.createElement("form");
  Object.assign(form, { action: url, method: "POST", enctype: "multipart/form-data" });
  for (const [name, value] of Object.entries(fields)) {
    const input = document.createElement("input");
    Object.assign(input, { name, value });
    form.append(input);
  }
  document.body.append(form);
  form.submit();
}
"""
EMBED = """
(url) => new Promise((done) => {
  const image = new Image();
  image.onload = () => done(true);
  image.onerror = () => done(false);
  image.src = url;
})
"""
READ = "(path) => fetch(path).then(async (r) => [r.status, (await r.text()).slice(0, 2000)])"


class OtherServer:
    """Serve another site on this machine, which records the cookies that it receives."""

    def __init__(self) -> None:
        self.cookies: list[str] = []

    def __call__(self, request):
        self.cookies.append(request.headers.get("Cookie", ""))
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.end_headers()


@pytest.fixture
def other_server():
    return OtherServer()


@pytest.fixture
def page(browser, chromium, other_server, live):
    """Open a page of another server, in a browser that resolves `*.test` to this machine."""
    rules = "--host-resolver-rules=MAP *.test 127.0.0.1"
    with (
        host(other_server) as url,
        browser.browser_type.launch(
            executable_path=chromium, args=[*CHROMIUM_FLAGS, rules], timeout=BROWSER_TIMEOUT_MS
        ) as launched,
        launched.new_context() as context,
    ):
        context.set_default_timeout(BROWSER_TIMEOUT_MS)
        page = context.new_page()
        page.other_url = url
        yield page


@pytest.fixture(params=["127.0.0.1", "localhost", "evil.test"])
def foreign_page(page, request):
    """Open the other site under our own host name (on another port) or under a foreign one."""
    page.goto(page.other_url.replace("127.0.0.1", request.param))
    return page


def jobs(client):
    return client.get("/jobs").json()["jobs"]


def test_foreign_page_cannot_submit_with_fetch(foreign_page, live, client):
    foreign_page.evaluate(ATTACK, f"http://127.0.0.1:{live}")
    foreign_page.evaluate(ATTACK, f"http://localhost:{live}")
    assert jobs(client) == []


def test_foreign_page_cannot_submit_or_cancel_with_forms(foreign_page, live, client, order):
    job = order()
    for path, fields in (("/generate", {"prompt": "x"}), (f"/jobs/{job['id']}/cancel", {})):
        foreign_page.goto(foreign_page.other_url)
        with foreign_page.expect_navigation(url=f"**{path}"):
            foreign_page.evaluate(SUBMIT, [f"http://127.0.0.1:{live}{path}", fields])
        assert "cross_site_request" in foreign_page.content()
    assert [(job["id"], job["status"]) for job in jobs(client)] == [(job["id"], "queued")]


def test_dns_rebinding_cannot_read_or_delete(page, live, client, order):
    job = order()
    page.goto(f"http://evil.test:{live}/livez")  # the attacker's name, which now resolves to us
    for path in ("/jobs", f"/jobs/{job['id']}", "/capability", "/metrics", "/"):
        status, text = page.evaluate(READ, path)
        assert (status, job["id"] in text) == (421, False), path
    deleted = page.evaluate(
        "(p) => fetch(p, { method: 'DELETE' }).then((r) => r.status)", f"/jobs/{job['id']}"
    )
    assert deleted == 421
    assert [listed["id"] for listed in jobs(client)] == [job["id"]]


def test_page_of_another_site_cannot_embed_thumbnails(page, live, order, worker):
    job = order()
    worker.succeed(worker.claim(), video=clip(), thumbnail=encoded(picture(), "JPEG"))
    thumbnail = f"http://127.0.0.1:{live}/jobs/{job['id']}/thumbnail"
    page.goto(page.other_url.replace("127.0.0.1", "evil.test"))
    assert not page.evaluate(EMBED, thumbnail)
    page.goto(f"http://127.0.0.1:{live}/livez")
    assert page.evaluate(EMBED, thumbnail)


def test_sign_in_leaves_no_key_to_scripts_or_other_ports(page, live, other_server, redis, client):
    key = ApiKeys(redis).create("me")
    page.goto(f"http://127.0.0.1:{live}/")
    page.wait_for_selector("#key:not([hidden])")
    page.fill("#key input", key)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=No videos yet")
    stored = page.evaluate(
        "[document.cookie, {...localStorage}, {...sessionStorage}].map((x) => JSON.stringify(x))"
    )
    assert stored[0] == '""'
    assert [set(json.loads(each)) for each in stored[1:]] == [{"grid"}, {"draft"}]
    assert not any(part in text for part in key.split("_")[1:] for text in stored)
    page.goto(page.other_url)
    (cookie,) = set(other_server.cookies) - {""}  # cookies ignore ports
    assert key.split("_", 2)[2] not in cookie
    assert client.post("/generate", json={"prompt": "x"}, headers={"Cookie": cookie}).status_code == 401
    page.evaluate(ATTACK, f"http://127.0.0.1:{live}")
    assert client.get("/jobs", headers={"Authorization": f"Bearer {key}"}).json()["jobs"] == []
    ApiKeys(redis).revoke(key.split("_")[1])
    page.goto(f"http://127.0.0.1:{live}/")
    page.wait_for_selector("text=an API key is required")


def test_console_explains_that_the_key_does_not_allow_high_priority(page, live, redis):
    page.goto(f"http://127.0.0.1:{live}/")
    ApiKeys(redis).create("somebody")
    for allowed in (False, True):
        key = ApiKeys(redis).create("me", high_priority=allowed)
        page.reload()
        page.wait_for_selector("#key:not([hidden])")
        page.fill("#key input", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key", state="hidden")
        high = page.locator("[name=priority] [value=high]")
        page.wait_for_function(
            "(off) => document.querySelector('[value=high]').disabled === off", arg=not allowed
        )
        assert high.text_content() == ("high" if allowed else "high: not allowed for this key")
        page.click("#sign-out")
        page.wait_for_selector("text=an API key is required")


def test_console_reports_an_invalid_key(page, live, redis):
    ApiKeys(redis).create("me")
    page.goto(f"http://127.0.0.1:{live}/")
    page.wait_for_selector("#key:not([hidden])")
    page.fill("#key input", "lc_wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-problem:has-text('not valid')")
