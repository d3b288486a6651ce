"""Pages of the origins in `CORS_ORIGINS` may use the API; pages of others may not."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.app import create_app
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for

TRUSTED, OTHER = "https://studio.example.com", "https://evil.example"


@pytest.fixture(scope="module")
def app(redis_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cors")
    return create_app(settings_for(redis_server, folder, cors_origins=f"{TRUSTED}, http://localhost:3000"))


@pytest.fixture
def client(app, redis):
    with TestClient(app) as client:
        set_only_pool(redis, CAPABILITY)
        yield client


def preflight(client, origin):
    headers = {"Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Headers"] = "authorization,content-type,idempotency-key,x-stainless-lang"
    return client.options("/generate", headers=headers | {"Origin": origin})


def test_preflight_of_a_trusted_origin_is_answered(client):
    for origin in (TRUSTED, "http://localhost:3000"):
        answer = preflight(client, origin)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in answer.headers


def test_page_of_a_trusted_origin_may_generate(client):
    headers = {"Origin": TRUSTED, "Sec-Fetch-Site": "cross-site"}
    answer = client.post("/generate", json={"prompt": "a red ball"}, headers=headers)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (202, TRUSTED)
    assert "Location" in answer.headers["Access-Control-Expose-Headers"]
    refused = client.post("/generate", json={}, headers=headers)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (422, TRUSTED)


@pytest.mark.parametrize("origin", [OTHER, "null", f"{TRUSTED}.evil.example", "http://studio.example.com"])
def test_page_of_another_origin_is_refused(client, origin):
    assert "Access-Control-Allow-Origin" not in preflight(client, origin).headers
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    answer = client.post("/generate", json={"prompt": "a red ball"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request")
    assert "Access-Control-Allow-Origin" not in client.get("/jobs", headers=headers).headers


def test_session_cookie_does_not_count_for_pages_of_a_trusted_origin(client, app, redis):
    key = app.state.backend.authenticator.keys.create("alice")
    signed_in = client.post("/session", headers={"Authorization": f"Bearer {key}"})
    assert signed_in.status_code == 204
    assert client.get("/jobs").status_code == 200
    for method, path in (("GET", "/jobs"), ("POST", "/generate")):
        answer = client.request(method, path, json={"prompt": "x"}, headers={"Origin": TRUSTED})
        assert answer.status_code == 401
        assert answer.headers["Access-Control-Allow-Origin"] == TRUSTED


def test_without_the_setting_no_origin_is_trusted(redis_server, redis, tmp_path):
    with TestClient(create_app(settings_for(redis_server, tmp_path))) as client:
        assert "Access-Control-Allow-Origin" not in preflight(client, TRUSTED).headers


@pytest.mark.parametrize(
    "origins", ["*", "studio.example.com", f"{TRUSTED}/", "ftp://a", f"{TRUSTED} {OTHER}"]
)
def test_other_values_are_refused(redis_server, tmp_path, origins):
    with pytest.raises(ValidationError, match="must be origins"):
        settings_for(redis_server, tmp_path, cors_origins=origins)
