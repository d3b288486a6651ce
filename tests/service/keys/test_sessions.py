"""The console's session: its cookie, what it allows, and when it ends."""

from __future__ import annotations

import json
import time
from http.cookies import SimpleCookie

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from service.app import create_app
from service.keys.api_keys import ApiKeys
from service.keys.sessions import PREFIX, Sessions
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for

OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def keys(redis):
    return ApiKeys(redis)


@pytest.fixture
def key(client, keys):
    return keys.create("me")


def sign_in(client, key, **headers):
    return client.post("/session", headers={"Authorization": f"Bearer {key}", **headers})


@pytest.fixture
def browser(client, key):
    """Return the headers of a browser that has signed in."""
    name, morsel = next(iter(SimpleCookie(sign_in(client, key).headers["Set-Cookie"]).items()))
    client.cookies.clear()
    return {"Cookie": f"{name}={morsel.value}"}


@pytest.fixture
def job(client, key):
    return client.post("/generate", json={"prompt": "x"}, headers={"Authorization": f"Bearer {key}"}).json()


class TestCookie:
    def test_is_limited_to_this_host_and_hidden_from_scripts(self, client, key):
        answer = sign_in(client, key)
        assert answer.status_code == 204
        ((name, cookie),) = SimpleCookie(answer.headers["Set-Cookie"]).items()
        assert name == "longcat_session"
        assert cookie["httponly"]
        assert (cookie["samesite"], cookie["path"], cookie["domain"]) == ("strict", "/", "")
        assert not cookie["max-age"]  # the browser drops it when it closes; the service ends it earlier

    def test_contains_no_key_and_is_not_stored_in_redis(self, client, key, redis):
        value = next(iter(SimpleCookie(sign_in(client, key).headers["Set-Cookie"]).values())).value
        assert len(value) >= 32
        assert not any(part in value for part in key.split("_", 2)[1:])
        stored = b"".join([name + redis.get(name) for name in redis.keys(f"{PREFIX}*")])
        assert value.encode() not in stored
        assert key.split("_", 2)[2].encode() not in stored

    def test_name_contains_the_port(self, client, key):
        answer = sign_in(client, key, Host="127.0.0.1:8001")
        assert answer.headers["Set-Cookie"].startswith("longcat_session_8001=")

    def test_is_secure_and_bound_to_the_host_over_tls(self, redis_server, key, tmp_path):
        app = create_app(settings_for(redis_server, tmp_path, public_url="https://videos.example"))
        answer = sign_in(TestClient(app), key, Host="videos.example")
        assert answer.headers["Set-Cookie"].startswith("__Host-longcat_session=")
        assert "secure" in answer.headers["Set-Cookie"].lower()

    def test_is_not_set_for_an_invalid_key_or_foreign_host(self, client, key):
        assert sign_in(client, key[:-4] + "AAAA").status_code == 401
        assert client.post("/session").status_code == 401
        assert sign_in(client, key, Host="evil.example").status_code == 421
        assert sign_in(client, key, Origin="http://evil.example").status_code == 403


class TestSession:
    def test_authenticates_reads_that_pages_load_without_headers(self, client, browser, job):
        for headers in ({}, OURS, {"Sec-Fetch-Site": "none"}):
            assert client.get(f"/jobs/{job['id']}", headers=browser | headers).status_code == 200
        rights = {"high_priority_allowed": False, "is_admin": False}
        assert client.get("/session", headers=browser).json() == {"owner": "me", **rights}

    def test_authenticates_changes_only_for_our_own_page(self, client, browser, job):
        url = f"/jobs/{job['id']}/cancel"
        assert client.post(url, headers=browser).status_code == 401
        for page in ({"Sec-Fetch-Site": "same-site"}, {"Origin": "http://testserver:1"}):
            assert client.post(url, headers=browser | page).status_code == 403
        assert client.get("/jobs", headers=browser).json()["jobs"][0]["status"] == "queued"
        assert client.post(url, headers=browser | OURS).status_code == 200
        ordered = client.post(
            "/generate", json={"prompt": "x"}, headers=browser | {"Origin": "http://testserver"}
        )
        assert ordered.status_code == 202

    def test_does_not_authenticate_requests_of_foreign_pages(self, client, browser, job):
        headers = browser | {"Sec-Fetch-Site": "same-site"}
        assert client.get(f"/jobs/{job['id']}/video", headers=headers).status_code == 401

    def test_does_not_authenticate_under_a_foreign_host_name(self, client, browser):
        assert client.get("/jobs", headers=browser | {"Host": "evil.example"}).status_code == 401

    def test_ends_with_its_key(self, client, browser, key, keys):
        assert client.get("/jobs", headers=browser).status_code == 200
        keys.revoke(key.split("_")[1])
        assert client.get("/jobs", headers=browser).status_code == 401

    def test_ends_when_the_user_signs_out(self, client, browser):
        answer = client.delete("/session", headers=browser | OURS)
        assert answer.status_code == 204
        assert "Max-Age=0" in answer.headers["Set-Cookie"]
        assert client.get("/jobs", headers=browser).status_code == 401

    def test_ends_some_time_after_its_last_use(self, client, browser, redis, settings):
        (name,) = redis.keys(f"{PREFIX}*")
        redis.expire(name, 100)
        assert client.get("/jobs", headers=browser).status_code == 200
        assert settings.session_s - 60 < redis.ttl(name) <= settings.session_s == 12 * 3600
        redis.pexpire(name, 0)
        assert client.get("/jobs", headers=browser).status_code == 401

    def test_is_not_extended_for_ever(self, client, browser, redis):
        (name,) = redis.keys(f"{PREFIX}*")
        stored = json.loads(redis.get(name))
        assert stored["ends_at_s"] <= time.time() + 7 * 86400
        redis.set(name, json.dumps(stored | {"ends_at_s": time.time() - 1}), keepttl=True)
        assert client.get("/jobs", headers=browser).status_code == 401

    def test_ends_when_the_key_in_the_settings_changes(self, redis):
        before = Sessions(redis, ApiKeys(redis, SecretStr("before")), 60)
        session_id = before.open("before")
        caller = before.authenticate(session_id)
        assert caller is not None
        assert caller.owner == "default"
        assert Sessions(redis, ApiKeys(redis, SecretStr("after")), 60).authenticate(session_id) is None

    def test_is_not_required_while_no_key_exists(self, client, redis):
        set_only_pool(redis, CAPABILITY)
        rights = {"high_priority_allowed": True, "is_admin": True}
        assert client.get("/session").json() == {"owner": "", **rights}
        assert sign_in(client, "anything").status_code == 401
