"""Query parameters that a route does not have are refused, on every route but those of the console's page."""

from __future__ import annotations

import pytest
from openai import BadRequestError, OpenAI

from tests.service.openapi.test_schema import OPERATIONS

ROUTES = [
    *OPERATIONS,
    *(("get", path) for path in ("/session", "/docs", "/openapi.json")),
    *(("head", path) for path in ("/livez", "/jobs")),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_unknown_parameter_is_refused(client, order, method, path):
    job = order()
    path = path.format(
        job_id=job["id"], video_id=job["id"], batch_id=job["id"], model="LongCat-Video", name="draft"
    )
    answer = client.request(method, path, params={"state": "failed"})
    assert answer.status_code == (400 if path.startswith("/v1/") else 422)
    if method != "head":
        error = answer.json()["error"]
        assert error["code"] == "invalid_request"
        assert error["param" if path.startswith("/v1/") else "field"] == "state"
    assert client.get(f"/jobs/{job['id']}").json()["status"] == "queued"


@pytest.mark.parametrize("path", ["/", "/console/style.css"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_console_is_served_with_any_parameter(client, method, path):
    assert client.request(method, path, params={"utm_source": "x"}).status_code == 200


def test_refusal_names_the_parameters_of_the_route(client):
    message = client.get("/v1/videos?state=failed").json()["error"]["message"]
    assert message == "state: is not a query parameter of this route; it has after, limit, order"


def test_parameter_that_is_given_twice_is_refused(client):
    answer = client.get("/jobs?task=refine&task=long_video")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "task")


def test_nothing_is_queued_by_a_request_with_an_unknown_parameter(client):
    assert client.post("/generate?quality=exact&wait=1", json={"prompt": "a red ball"}).status_code == 422
    assert client.get("/jobs").json()["jobs"] == []


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_parameters_of_openais_client_are_accepted(live, order, worker):
    job = order()
    worker.succeed(worker.claim())
    openai = OpenAI(base_url=f"http://127.0.0.1:{live}/v1", api_key="any", max_retries=0)
    assert openai.videos.list(after=order()["id"], limit=1, order="desc").data[0].id == job["id"]
    assert openai.videos.download_content(job["id"], variant="thumbnail").read() == b"a thumbnail"
    with pytest.raises(BadRequestError):
        openai.videos.list(extra_query={"state": "failed"})
