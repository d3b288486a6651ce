"""Slow inputs and searches of one owner do not delay other requests."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import ExitStack, contextmanager
from threading import Event

import httpx
import pytest
from redis import Redis

from jobs.store import listing
from service.app import create_app
from service.keys.api_keys import ApiKeys
from stack.redis_server import RedisServer
from tests.servers import redis_program
from tests.service.conftest import serving, settings_for
from tests.service.http.raw import TIMEOUT_S, connected, head, post_json, read_answer, status
from tests.service.media import encoded, picture
from tests.waiting import wait_until

NUM_SLOW = 60  # more than the 40 threads that serve all other requests


@pytest.fixture(scope="module")
def settings(redis_server, tmp_path_factory):
    limits = {"owner_input_orders": NUM_SLOW, "total_input_orders": NUM_SLOW + 1}
    patience = {"fetch_head_timeout_s": 300, "fetch_timeout_s": 300}  # inputs are slow until a test ends
    return settings_for(redis_server, tmp_path_factory.mktemp("orders"), **limits, **patience)


@pytest.fixture
def keys(redis):
    made = ApiKeys(redis)
    return {owner: f"Authorization: Bearer {made.create(owner)}" for owner in ("mallory", "alice")}


@contextmanager
def tarpit():
    """Yield the URL of a server that never answers, and a function that accepts a connection."""
    with ExitStack() as held, socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.settimeout(TIMEOUT_S)
        yield (
            f"http://127.0.0.1:{listener.getsockname()[1]}/a.png",
            lambda: held.enter_context(listener.accept()[0]),
        )


def order(key, body):
    content = json.dumps(body).encode()
    return post_json(key, f"Content-Length: {len(content)}") + content


def ask(port, request):
    with connected(port) as connection:
        connection.sendall(request)
        return read_answer(connection)


@pytest.fixture
def searches_that_wait(monkeypatch):
    """Let each search wait until the returned event is set, which the end of the test does."""
    go_on = Event()
    monkeypatch.setattr(listing, "_has_text", lambda *_: go_on.wait())
    yield go_on
    go_on.set()


@contextmanager
def slow_orders(port, key):
    """Occupy all input threads of an owner."""
    with tarpit() as (url, accept), ExitStack() as opened:
        slow = order(key, {"prompt": "a cat", "image": {"url": url}})
        for _ in range(NUM_SLOW):
            opened.enter_context(connected(port)).sendall(slow)
        for _ in range(NUM_SLOW):
            accept()
        yield slow


def test_other_requests_are_answered_during_many_searches(live, keys, app, searches_that_wait):
    ask(live, order(keys["mallory"], {"prompt": "a cat"}))
    with ExitStack() as opened:
        searches = [opened.enter_context(connected(live)) for _ in range(NUM_SLOW)]
        for search in searches:
            search.sendall(head("GET", "/jobs?text=cat", keys["mallory"]))
        wait_until(lambda: len(app.state.requests_in_progress) >= NUM_SLOW)
        assert status(ask(live, head("GET", "/jobs", keys["alice"]))) == 200
        searches_that_wait.set()
        assert {status(read_answer(search)) for search in searches} == {200}


def test_other_requests_are_answered_while_all_input_threads_of_an_owner_are_busy(live, keys):
    with slow_orders(live, keys["mallory"]) as slow:
        assert status(ask(live, head("GET", "/livez"))) == 200
        assert status(ask(live, head("GET", "/readyz"))) == 200
        assert status(ask(live, head("GET", "/jobs", keys["mallory"]))) == 200
        created = ask(live, order(keys["alice"], {"prompt": "a red ball"}))
        job = json.loads(created.partition(b"\r\n\r\n")[2])
        assert status(ask(live, head("GET", f"/jobs/{job['id']}", keys["alice"]))) == 200
        refused = ask(live, slow)
        assert status(refused) == 429
        assert b"owner_input_orders" in refused
        assert b"retry-after" in refused.lower()


def test_another_owner_can_submit_an_image_while_one_owner_uses_all_its_threads(live, keys):
    with slow_orders(live, keys["mallory"]):
        answer = httpx.post(
            f"http://127.0.0.1:{live}/generate",
            data={"prompt": "a cat"},
            files={"image": encoded(picture())},
            headers=dict([keys["alice"].split(": ", 1)]),
            timeout=60,
        )
        assert answer.status_code == 202


def test_requests_without_inputs_use_no_input_threads(live, keys):
    with slow_orders(live, keys["mallory"]):
        assert status(ask(live, order(keys["mallory"], {"prompt": "a red ball"}))) == 202


def test_requests_with_inputs_are_answered_503_while_all_input_threads_are_busy(live, keys):
    with slow_orders(live, keys["mallory"]), tarpit() as (url, accept), connected(live) as last:
        slow = order(keys["alice"], {"prompt": "a cat", "image": {"url": url}})
        last.sendall(slow)
        accept()
        refused = ask(live, slow)
        assert status(refused) == 503
        assert b'"busy"' in refused
        assert b"retry-after" in refused.lower()


def test_simultaneous_slow_requests_do_not_delay_another_owner(live, keys):
    alice = keys["alice"]
    created = ask(live, order(alice, {"prompt": "a red ball"}))
    job = json.loads(created.partition(b"\r\n\r\n")[2])
    bomb = b'{"prompt": "a", "metadata": [' + b"[]," * (4 << 20) + b"0]}"
    attacks = [
        *[b""] * 50,
        *[b"GET /livez HTTP/1.1\r\nX: "] * 50,
        *[post_json(keys["mallory"], "Content-Length: 1000000") + b'{"prompt'] * 50,
        *[head("GET", "/livez", "Content-Length: 3", "Transfer-Encoding: chunked")] * 5,
        *[post_json(keys["mallory"], f"Content-Length: {len(bomb)}") + bomb] * 2,
    ]
    with slow_orders(live, keys["mallory"]), ExitStack() as opened:
        for attack in attacks:
            opened.enter_context(connected(live)).sendall(attack)
        for _ in range(5):
            assert status(ask(live, head("GET", "/livez"))) == 200
            assert status(ask(live, head("GET", f"/jobs/{job['id']}", alice))) == 200


@contextmanager
def redis_that_can_be_stopped(folder):
    """Run a separate Redis. Yield its URL, and a context in which it is stopped by a signal."""
    server = RedisServer(folder / "redis", redis_program())
    server.start()
    with Redis.from_url(server.url) as redis:
        pid = int(redis.info("server")["process_id"])

    @contextmanager
    def stopped():
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    try:
        yield server.url, stopped
    finally:
        server.stop()


@contextmanager
def pollers(port):
    """Send more requests than there are threads. Each of them needs Redis."""
    with ExitStack() as opened:
        polling = [opened.enter_context(connected(port)) for _ in range(60)]
        for connection in polling:
            connection.sendall(head("GET", "/jobs"))
        yield polling


def test_requests_are_answered_503_while_redis_hangs(tmp_path):
    with (
        redis_that_can_be_stopped(tmp_path) as (url, stopped),
        serving(create_app(settings_for(url, tmp_path, redis_patience_s=0.3))) as port,
    ):
        wait_until(lambda: status(ask(port, head("GET", "/jobs"))) == 200)
        with stopped(), pollers(port) as polling:
            assert status(ask(port, head("GET", "/readyz"))) == 503
            assert {status(read_answer(connection)) for connection in polling} == {503}
        wait_until(lambda: status(ask(port, head("GET", "/jobs"))) == 200)


def test_liveness_is_answered_while_all_threads_wait_for_redis(tmp_path):
    with (
        redis_that_can_be_stopped(tmp_path) as (url, stopped),
        serving(create_app(settings_for(url, tmp_path, redis_patience_s=200.0))) as port,
        ExitStack() as opened,
    ):
        with stopped():
            polling = opened.enter_context(pollers(port))
            probe = opened.enter_context(connected(port))
            probe.settimeout(30.0)  # much less than the timeout of Redis
            probe.sendall(head("GET", "/livez"))
            assert status(read_answer(probe)) == 200
        assert {status(read_answer(connection)) for connection in polling} == {200}
