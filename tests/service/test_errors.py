"""Every failed request has the same error shape, status and headers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from jobs import errors as job_errors
from service.app import create_app
from service.errors import STATUS, BodyTooLarge, status_of
from tests.pools import set_only_pool
from tests.servers import free_port
from tests.service.conftest import CAPABILITY, settings_for


def error_of(answer):
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert {"code", "message"} <= error.keys() <= {"code", "message", "field"}
    return answer.status_code, error["code"]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nowhere", (404, "not_found")),
        ("GET", "/jobs/", (404, "not_found")),
        ("GET", "/jobs/nobody", (404, "job_not_found")),
        ("GET", "/jobs/a/b/c", (404, "not_found")),
        ("GET", "/console/../settings.py", (404, "not_found")),
        ("GET", "/generate", (405, "method_not_allowed")),
        ("PUT", "/jobs", (405, "method_not_allowed")),
        ("PATCH", "/jobs/nobody", (405, "method_not_allowed")),
        ("BREW", "/livez", (405, "method_not_allowed")),
        ("GET", "/jobs?limit=none", (422, "invalid_request")),
        ("GET", "/console/secrets.js", (422, "invalid_request")),
        ("POST", "/generate", (415, "unsupported_media_type")),
    ],
)
def test_unknown_paths_and_methods_have_the_error_shape(client, method, path, expected):
    answer = client.request(method, path, follow_redirects=False)
    assert error_of(answer) == expected
    assert ("Allow" in answer.headers) == (answer.status_code == 405)


def test_unknown_path_is_named_in_the_message(client):
    message = client.post("/nowhere?a=b").json()["error"]["message"]
    assert message == "POST /nowhere: there is no such path"
    assert len(client.get(f"/{'x' * 5000}").json()["error"]["message"]) < 300


def test_wrong_method_is_named_in_the_message_with_the_allowed_ones(client):
    message = client.put("/jobs/somebody").json()["error"]["message"]
    assert message == "PUT /jobs/somebody: this path supports DELETE, GET, HEAD"


def test_wrong_method_is_answered_with_all_allowed_ones(client):
    assert client.put("/jobs/somebody").headers["Allow"] == "DELETE, GET, HEAD"
    assert client.put("/jobs/somebody/video").headers["Allow"] == "GET, HEAD"
    assert client.put("/v1/videos/extensions").headers["Allow"] == "POST"


def test_every_response_has_a_request_id(client):
    assert len(client.get("/livez").headers["X-Request-Id"]) == 16
    assert client.get("/nowhere", headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
    assert client.get("/livez", headers={"X-Request-Id": "not mine!"}).headers["X-Request-Id"] != "not mine!"


def test_retryable_errors_are_exactly_those_with_429_or_503():
    assert {kind for kind, status in STATUS.items() if status in {429, 503}} == {
        kind for kind in STATUS if kind.retryable
    }


def test_class_without_a_status_has_that_of_its_base_class():
    assert status_of(job_errors.InvalidInput) == status_of(job_errors.InvalidRequest) == 422
    assert status_of(job_errors.LeaseLost) == 500


class TestInternalError:
    @pytest.fixture
    def broken(self, app, redis):
        """Return a client of a service with a bug."""

        def get_nothing():
            raise ZeroDivisionError("secret detail")

        app.add_api_route("/broken", get_nothing)
        set_only_pool(redis, CAPABILITY)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
        app.router.routes.pop()

    def test_is_a_500_with_a_request_id_and_without_detail(self, broken):
        answer = broken.get("/broken", headers={"X-Request-Id": "seen-before"})
        assert error_of(answer) == (500, "internal")
        assert answer.headers["X-Request-Id"] == "seen-before"
        assert "seen-before" in answer.json()["error"]["message"]
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text

    def test_is_counted(self, broken):
        broken.get("/broken")
        assert 'route="/broken",status="500"' in broken.get("/metrics").text


class TestTooLarge:
    @pytest.fixture
    def small(self, redis, redis_server, tmp_path):
        """Return a client of a service with small limits."""
        set_only_pool(redis, CAPABILITY)
        limits = {
            "max_json_bytes": 300,
            "max_body_bytes": 2000,
            "max_image_bytes": 100,
            "max_video_bytes": 100,
        }
        with TestClient(create_app(settings_for(redis_server, tmp_path, **limits))) as client:
            yield client

    def test_json_is_refused(self, small):
        answer = small.post("/generate", json={"prompt": "x" * 300})
        assert error_of(answer) == (413, BodyTooLarge.code)

    def test_json_of_unknown_length_is_refused_while_it_streams(self, small):
        pieces = iter([b'{"prompt": "', b"x" * 200, b"x" * 200, b'"}'])
        answer = small.post("/generate", content=pieces, headers={"Content-Type": "application/json"})
        assert error_of(answer) == (413, BodyTooLarge.code)

    def test_form_is_refused(self, small):
        answer = small.post("/generate", data={"prompt": "a"}, files={"image": b"x" * 3000})
        assert error_of(answer) == (413, BodyTooLarge.code)

    @pytest.mark.parametrize("field", ["image", "video"])
    def test_file_is_refused_by_its_own_limit(self, small, field):
        upload = small.post("/generate", data={"prompt": "a"}, files={field: b"x" * 101})
        encoded = small.post("/generate", json={"prompt": "a", field: {"base64": "x" * 200}})
        for answer in (upload, encoded):
            assert error_of(answer) == (422, "invalid_input")
            assert "larger than 100 bytes" in answer.json()["error"]["message"]
            assert answer.json()["error"]["field"] == field

    def test_form_with_too_many_parts_is_refused(self, client):
        parts = [("prompts", (None, "x"))] * 1001
        assert error_of(client.post("/generate", files=parts)) == (400, "malformed_body")


class TestWithoutRedis:
    @pytest.fixture(scope="class")
    @classmethod
    def alone(cls, tmp_path_factory):
        """Return a client of a service without Redis."""
        url = f"redis://127.0.0.1:{free_port()}"
        settings = settings_for(url, tmp_path_factory.mktemp("alone"), redis_patience_s=0.01)
        with TestClient(create_app(settings)) as client:
            yield client

    def test_every_request_is_answered_503(self, alone):
        def ask(method, path, body=None):
            return alone.request(method, path, json=body)

        asked = [
            ("GET", "/jobs"),
            ("GET", "/jobs/somebody"),
            ("GET", "/jobs/somebody/video"),
            ("GET", "/jobs/somebody/events"),
            ("POST", "/jobs/somebody/cancel"),
            ("DELETE", "/jobs/somebody"),
            ("POST", "/generate", {"prompt": "a red ball"}),
            ("GET", "/readyz"),
        ]
        with ThreadPoolExecutor(len(asked)) as pool:  # each request waits for the timeout of Redis
            answers = list(pool.map(lambda given: ask(*given), asked))
        assert {error_of(answer) for answer in answers} == {(503, "unavailable")}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)

    def test_service_is_live_and_reports_redis_down(self, alone):
        assert alone.get("/livez").json() == {"status": "ok"}
        assert alone.get("/").status_code == 200
        assert "longcat_redis_up 0.0" in alone.get("/metrics").text
