"""Decoding happens outside the service's process and cannot exhaust its memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model.media.sandbox import Sandbox
from service.app import create_app
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.media import clip, encoded, picture

BOMB = encoded(Image.new("L", (5000, 5000)))  # 25 kB; 100 MB when it is decoded
LIMITS = {"decode_memory_bytes": 64 << 20, "max_decodes": 2}


@pytest.fixture(scope="module")
def settings(redis_server, tmp_path_factory):
    return settings_for(redis_server, tmp_path_factory.mktemp("decoding"), **LIMITS)


def order(client, **files):
    return client.post("/generate", data={"prompt": "a"}, files=files)


def test_image_that_needs_too_much_memory_is_refused(client):
    answer = order(client, image=BOMB)
    assert answer.status_code == 422
    assert answer.json()["error"] == {
        "code": "invalid_input",
        "message": "image: needs more than 64 MiB of memory to decode",
        "field": "image",
    }


def test_many_such_images_do_not_grow_the_service(client):
    before = psutil.Process().memory_info().rss
    with ThreadPoolExecutor(8) as pool:
        answers = [answer.result() for answer in [pool.submit(order, client, image=BOMB) for _ in range(8)]]
    messages = {answer.json()["error"]["message"] for answer in answers}
    assert messages == {"image: needs more than 64 MiB of memory to decode"}
    assert psutil.Process().memory_info().rss - before < 50 << 20
    assert order(client, image=encoded(picture())).status_code == 202


def test_request_is_answered_503_while_decoding_is_impossible(client, monkeypatch):
    monkeypatch.setattr(client.app.state.backend.sandbox, "_max_wait_s", 0.01)
    slots = client.app.state.backend.sandbox._slots
    with slots, slots:
        answer = order(client, video=clip(17))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unavailable"
    assert int(answer.headers["Retry-After"]) > 0
    assert order(client, video=clip(17)).status_code == 202


def test_fork_server_runs_as_long_as_the_service(redis, redis_server, tmp_path, monkeypatch):
    monkeypatch.setattr("service.backend.Sandbox", Sandbox)  # other tests share a fork server
    before = set(psutil.Process().children())
    with TestClient(create_app(settings_for(redis_server, tmp_path))) as client:
        (server,) = set(psutil.Process().children()) - before
        set_only_pool(redis, CAPABILITY)
        assert order(client, image=encoded(picture())).status_code == 202
        assert set(psutil.Process().children()) - before == {server}
    assert not server.is_running()
