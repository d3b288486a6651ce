"""HEAD is answered wherever GET is, with the same status and headers and without a body."""

from __future__ import annotations

import http.client

import pytest

from tests.service.openapi.test_schema import OPERATIONS

PATHS = [path for method, path in OPERATIONS if method == "get"]
PAGES = ["/", "/session", "/docs", "/openapi.json", "/console/style.css"]
VARYING = {"date", "x-request-id", "transfer-encoding", "connection"}


@pytest.fixture
def finished(order, worker):
    job = order()
    worker.succeed(worker.claim())
    return job["id"]


def ask(port, method, path):
    """Return status, headers and body of a response, as they are on the wire."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    body = response.read()
    connection.close()
    return response.status, {name: value for name, value in headers.items() if name not in VARYING}, body


@pytest.mark.parametrize("path", [*PATHS, *PAGES])
def test_head_is_answered_like_get(live, finished, path):
    path = path.format(job_id=finished, video_id=finished, model="LongCat-Video")
    if path == "/events":
        path = f"{path}?jobs={finished}"
    status, headers, body = ask(live, "HEAD", path)
    expected_status, expected_headers, _ = ask(live, "GET", path)
    if path == "/metrics":  # it counts the requests of this test
        del headers["content-length"], expected_headers["content-length"]
    assert (status, headers, body) == (expected_status, expected_headers, b"")
    assert status == 200


def test_head_of_a_queued_job_and_its_events_ends_at_once(live, order):
    job = order()
    for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/events"):
        assert ask(live, "HEAD", path)[0] == 200
    assert ask(live, "HEAD", "/jobs/nobody/events")[0] == 404


def test_other_methods_name_head_among_the_allowed_ones(client):
    assert client.put("/livez").headers["Allow"] == "GET, HEAD"
