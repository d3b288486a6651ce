"""Web pages cannot use the service through a visitor's browser: cross-site requests and DNS rebinding."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.datastructures import Headers

from service.app import create_app
from service.http.origins import Initiator, Origins
from service.keys.api_keys import ApiKeys
from service.settings import Settings
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for

FOREIGN_PAGES = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "something new"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "null"},
    {"Origin": ""},
]
FORM = {"prompt": (None, "a ball"), "priority": (None, "high")}


@pytest.fixture
def http(live):
    with httpx.Client(base_url=f"http://127.0.0.1:{live}", timeout=60) as client:
        yield client


@pytest.fixture
def job(http):
    return http.post("/generate", json={"prompt": "a ball"}).json()


@pytest.mark.parametrize("headers", FOREIGN_PAGES, ids=str)
class TestForeignPage:
    def test_cannot_submit(self, http, headers):
        for path in ("/generate", "/v1/videos"):
            answer = http.post(path, files=FORM, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request"), path
        assert http.get("/jobs").json()["jobs"] == []

    def test_cannot_cancel_or_delete(self, http, job, headers):
        assert http.post(f"/jobs/{job['id']}/cancel", headers=headers).status_code == 403
        assert http.delete(f"/jobs/{job['id']}", headers=headers).status_code == 403
        assert http.delete(f"/v1/videos/{job['id']}", headers=headers).status_code == 403
        assert http.get(f"/jobs/{job['id']}").json()["status"] == "queued"


def test_cross_site_request_is_refused_before_its_body_arrives(live):
    head = (
        f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:{live}\r\nOrigin: http://evil.example\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", live), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 403")


def test_requests_of_programs_and_of_our_own_page_pass(http, live):
    for headers in (
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": f"http://127.0.0.1:{live}"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": f"http://127.0.0.1:{live}"},
    ):
        assert http.post("/generate", files=FORM, headers=headers).status_code == 202, headers


def test_foreign_page_cannot_use_a_key_that_it_made_up(http):
    headers = {"Sec-Fetch-Site": "cross-site", "Authorization": "Bearer x"}
    assert http.post("/generate", files=FORM, headers=headers).status_code == 403


class TestForeignHostName:
    @pytest.mark.parametrize(
        "name",
        ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "[x"],
    )
    def test_is_refused_without_keys(self, http, job, name):
        headers = {"Host": name}
        for path in ("/", "/jobs", f"/jobs/{job['id']}", "/capability", "/metrics", "/docs", "/readyz"):
            answer = http.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host_not_allowed"), path
        rebound = headers | {"Sec-Fetch-Site": "same-origin", "Origin": f"http://{name}"}
        assert http.delete(f"/jobs/{job['id']}", headers=rebound).status_code == 421
        assert http.post("/generate", json={"prompt": "x"}, headers=rebound).status_code == 421
        assert [listed["id"] for listed in http.get("/jobs").json()["jobs"]] == [job["id"]]

    def test_may_check_liveness(self, http):
        assert http.get("/livez", headers={"Host": "probe.example"}).status_code == 200

    def test_is_served_only_with_a_key(self, http, redis):
        key = ApiKeys(redis).create("me")
        foreign = {"Host": "videos.internal"}
        assert http.get("/jobs", headers=foreign).status_code == 401
        assert http.get("/jobs", headers=foreign | {"Authorization": f"Bearer {key}"}).status_code == 200
        assert http.get("/readyz", headers=foreign).status_code == 200

    def test_second_host_header_does_not_help(self, live):
        request = f"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1:{live}\r\nHost: evil.example\r\n\r\n"
        with socket.create_connection(("127.0.0.1", live), timeout=60) as connection:
            connection.sendall(request.encode())
            assert connection.recv(4096).split()[1] in {b"400", b"421"}

    def test_is_served_if_configured(self, redis_server, redis, tmp_path):
        set_only_pool(redis, CAPABILITY)
        settings = settings_for(
            redis_server, tmp_path, allowed_hosts="a.example, B.example", public_url="https://c.example/x"
        )
        with TestClient(create_app(settings)) as client:
            for name, status in {
                "a.example": 200,
                "b.example:8000": 200,
                "c.example": 200,
                "a.example.": 200,
                "sub.a.example": 421,
            }.items():
                assert client.get("/jobs", headers={"Host": name}).status_code == status, name
            headers = {"Origin": "https://c.example", "Host": "127.0.0.1:8000"}  # behind a proxy
            assert client.post("/generate", files=FORM, headers=headers).status_code == 202


@pytest.mark.parametrize("path", ["/livez", "/jobs", "/nowhere", "/", "/docs", "/jobs/none/video"])
def test_responses_cannot_be_embedded_by_foreign_pages(http, path):
    headers = http.get(path).headers
    assert headers["Cross-Origin-Resource-Policy"] == "same-site"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in headers


def test_refusals_are_counted_and_have_request_ids(http):
    answer = http.post("/generate", headers={"Origin": "null", "X-Request-Id": "mine"})
    assert answer.headers["X-Request-Id"] == "mine"
    assert 'longcat_http_requests_total{method="POST",route="none",status="403"}' in http.get("/metrics").text


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_bodies_of_simple_forms_are_refused(http, media_type):
    content = json.dumps({"prompt": "a ball"})
    assert http.post("/generate", content=content, headers={"Content-Type": media_type}).status_code == 415


class TestOrigins:
    @pytest.mark.parametrize(
        ("host", "is_allowed_host"),
        [
            ("localhost", True),
            ("LOCALHOST:1", True),
            ("localhost.", True),
            ("app.localhost:8000", True),
            ("127.0.0.1:8000", True),
            ("192.0.2.7", True),
            ("[::1]:8000", True),
            ("[fe80::1]", True),
            ("", False),
            ("xlocalhost", False),
            ("0x7f000001", False),
            ("127.0.0.1@evil.example", False),
        ],
    )
    def test_addresses_and_loopback_names_are_allowed(self, host, is_allowed_host):
        assert Origins(Settings()).is_allowed_host(Headers({"Host": host})) is is_allowed_host

    def test_second_host_is_not_overlooked(self):
        hosts = [(b"host", b"127.0.0.1"), (b"host", b"evil.example")]
        assert not Origins(Settings()).is_allowed_host(Headers(raw=hosts))

    def test_star_allows_every_name(self):
        assert Origins(Settings(allowed_hosts="*")).is_allowed_host(Headers({"Host": "any.example"}))

    @pytest.mark.parametrize(
        ("origin", "host", "sender"),
        [
            ("http://a.example", "a.example", Initiator.SAME_ORIGIN),
            ("https://a.example", "a.example:443", Initiator.SAME_ORIGIN),
            ("http://a.example:8000", "A.example:8000", Initiator.SAME_ORIGIN),
            ("http://a.example:8001", "a.example:8000", Initiator.CROSS_ORIGIN),
            ("http://a.example", "a.example:8000", Initiator.CROSS_ORIGIN),
            ("https://public.example", "10.0.0.1:8000", Initiator.SAME_ORIGIN),
            ("http://public.example", "10.0.0.1:8000", Initiator.CROSS_ORIGIN),
            ("file://", "a.example", Initiator.CROSS_ORIGIN),
            ("http://a.example:x", "a.example", Initiator.CROSS_ORIGIN),
            ("http://[", "a.example", Initiator.CROSS_ORIGIN),
        ],
    )
    def test_origin_is_compared_with_the_host(self, origin, host, sender):
        origins = Origins(Settings(public_url="https://public.example/videos"))
        assert origins.initiator(Headers({"Origin": origin, "Host": host})) is sender

    @pytest.mark.parametrize(
        ("scheme", "host", "is_https"),
        [
            ("https", "anything", True),
            ("http", "public.example", True),
            ("http", "public.example:443", True),
            ("http", "public.example:8000", False),
            ("http", "127.0.0.1:8000", False),
        ],
    )
    def test_tls_at_a_proxy_of_the_public_url_is_detected(self, scheme, host, is_https):
        origins = Origins(Settings(public_url="https://public.example"))
        assert origins.is_https(scheme, Headers({"Host": host})) is is_https
