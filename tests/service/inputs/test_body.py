"""Bodies that are too slow, incomplete, encoded, or too many at a time."""

from __future__ import annotations

import codecs
import json
import logging
from contextlib import ExitStack

import pytest

from service.app import create_app
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, serving, settings_for
from tests.service.http.raw import (
    connected,
    drip_until_answered,
    head,
    post_json,
    read_answer,
    read_until_closed,
    status,
)
from tests.service.media import encoded, picture
from tests.service.ops.test_health import metric
from tests.tickets import num_tickets
from tests.waiting import wait_until

FORM = "Content-Type: multipart/form-data; boundary=edge"
SLOW = {"body_timeout_s": 0.3, "body_min_bytes_per_s": 1e6}


@pytest.fixture(scope="module")
def slow_port(redis_server, tmp_path_factory):
    """Serve an app with short timeouts for bodies."""
    with serving(create_app(settings_for(redis_server, tmp_path_factory.mktemp("slow"), **SLOW))) as port:
        yield port


@pytest.fixture
def impatient(slow_port, redis):
    set_only_pool(redis, CAPABILITY)
    return slow_port


@pytest.mark.parametrize("path", ["/generate", "/v1/videos", "/v1/videos/extensions"])
@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("media_type", ["Content-Type: application/json", FORM])
def test_stalled_body_is_answered_408_and_its_connection_closed(impatient, path, length, media_type):
    with connected(impatient) as connection:
        connection.sendall(head("POST", path, media_type, length))
        answer = read_until_closed(connection)
    assert status(answer) == 408
    assert b"body_too_slow" in answer


def test_slowly_sent_body_is_answered_408(impatient):
    with connected(impatient) as connection:
        connection.sendall(post_json("Content-Length: 100000"))
        answer = drip_until_answered(connection, b" ")
    assert status(answer) == 408


def test_event_stream_may_last_longer_than_the_body_timeout(impatient, redis):
    body = json.dumps({"prompt": "a red ball"}).encode()
    with connected(impatient) as connection:
        connection.sendall(post_json(f"Content-Length: {len(body)}", "Connection: close") + body)
        job = json.loads(read_until_closed(connection).partition(b"\r\n\r\n")[2])
    with connected(impatient) as connection:
        connection.sendall(head("GET", f"/jobs/{job['id']}/events"))
        received = b""
        while received.count(b"no change") < 5:  # one per six intervals: longer than a body may take
            received += connection.recv(65536)
    assert status(received) == 200


def test_aborted_upload_is_logged_once_and_counted_as_499(live, client, caplog):
    name = 'longcat_http_requests_total{method="POST",route="/generate",status="499"}'
    failed = 'longcat_http_requests_total{method="POST",route="/generate",status="500"}'
    before = metric(client, name) or 0
    with caplog.at_level(logging.INFO):
        for kind in ("Content-Type: application/json", FORM):
            with connected(live) as connection:
                connection.sendall(head("POST", "/generate", kind, "Content-Length: 1000") + b"--edge\r\n")
        wait_until(lambda: metric(client, name) == before + 2)
    assert metric(client, failed) is None
    lines = [record for record in caplog.records if "disconnected" in record.message]
    assert len(lines) == 2
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/generate", "/v1/videos"])
@pytest.mark.parametrize("media_type", ["Content-Type: application/json", FORM])
def test_upload_that_the_end_of_the_process_cuts_off_is_answered_503(
    redis_server, redis, tmp_path, caplog, path, media_type
):
    app = create_app(settings_for(redis_server, tmp_path))
    with ExitStack() as stack:
        with serving(app) as port:
            connection = stack.enter_context(connected(port))
            connection.sendall(head("POST", path, media_type, "Content-Length: 1000") + b"--edge\r\n")
            wait_until(lambda: app.state.backend.capacities.open_bodies.used)
            app.state.backend.event_streams.close()  # as `python -m service` does before it stops
        answer = read_until_closed(connection)
    assert status(answer) == 503
    fields = answer.partition(b"\r\n\r\n")[0].lower()
    assert all(name in fields for name in (b"x-request-id:", b"retry-after:", b"connection: close"))
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["code"], "stopping" in error["message"]) == ("unavailable", True)
    assert "Traceback" not in caplog.text
    assert num_tickets(redis) == 0


WHOLE = (
    b'--edge\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na red ball\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    + encoded(picture())
    + b"\r\n--edge--\r\n"
)
CUTS = {
    "inside the last part": len(WHOLE) - 40,
    "before the closing boundary": WHOLE.rindex(b"\r\n--edge--"),
    "inside the closing boundary": len(WHOLE) - 5,
    "before its second hyphen": len(WHOLE) - 3,
    "after the first part": WHOLE.index(b"--edge", 6),
    "inside a head": WHOLE.index(b"filename"),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("path", ["/generate", "/v1/videos"])
def test_form_without_closing_boundary_is_refused(client, redis, path, cut):
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    answer = client.post(path, content=WHOLE[: CUTS[cut]], headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")
    assert num_tickets(redis) == 0


@pytest.mark.parametrize("end", [b"", b"\r\n", b"an epilogue"])
def test_form_with_closing_boundary_is_accepted(client, end):
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    content = WHOLE.removesuffix(b"\r\n") + end
    assert client.post("/generate", content=content, headers=headers).status_code == 202


def test_total_size_of_form_texts_is_limited(client):
    texts = [(f"field{number}", (None, "x" * 100_000)) for number in range(20)]
    answer = client.post("/generate", files=texts)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("value", ["[" + "[]," * 20_000 + "0]", "[" * 5000 + "]" * 5000])
def test_json_in_a_form_field_is_limited_like_a_body(client, value):
    answer = client.post("/generate", data={"prompt": "a", "metadata": value}, files={"image": b""})
    assert answer.status_code in {413, 422}


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=edge"])
def test_compressed_body_is_refused_by_its_name(client, media_type):
    headers = {"Content-Type": media_type, "Content-Encoding": "gzip"}
    answer = client.post("/generate", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415
    assert "must not be compressed" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/generate", "/v1/videos"])
def test_byte_order_mark_before_json_is_skipped(client, path):
    headers = {"Content-Type": "application/json"}
    content = codecs.BOM_UTF8 + '{"prompt": "ein roter Bäll"}'.encode()
    job = client.post(path, content=content, headers=headers).json()
    assert client.get(f"/jobs/{job['id']}").json()["request"]["prompt"] == "ein roter Bäll"
    twice = client.post(path, content=codecs.BOM_UTF8 + content, headers=headers)
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, "malformed_body")


class TestConcurrentBodies:
    @pytest.fixture(scope="class")
    @classmethod
    def small(cls, redis_server, tmp_path_factory):
        """Create an app with small limits for bodies and their memory."""
        limits = {
            "owner_open_bodies": 3,
            "max_json_bytes": 1 << 20,
            "total_body_memory_bytes": 1 << 20,
            "api_key": "k",
        }
        return create_app(settings_for(redis_server, tmp_path_factory.mktemp("small"), **limits))

    @pytest.fixture(scope="class")
    @classmethod
    def small_port(cls, small):
        with serving(small) as port:
            yield port

    def begin(self, connection, small, content):
        """Send a part of a body, and wait until the service waits for the rest."""
        before = small.state.backend.capacities.body_memory.used
        connection.sendall(post_json("Authorization: Bearer k", "Content-Length: 1000000") + content)
        wait_until(lambda: small.state.backend.capacities.body_memory.used - before >= len(content) - 65536)

    def test_too_many_bodies_of_an_owner_are_refused_immediately(self, small, small_port, redis):
        waiting = [post_json("Authorization: Bearer k", "Content-Length: 9", "Expect: 100-continue")] * 3
        with connected(small_port) as a, connected(small_port) as b, connected(small_port) as c:
            for connection, sent in zip((a, b, c), waiting, strict=True):
                connection.sendall(sent)
                assert status(connection.recv(1000)) == 100
            with connected(small_port) as connection:
                connection.sendall(waiting[0])
                answer = read_answer(connection)
        assert status(answer) == 429
        assert b"owner_open_bodies" in answer
        assert b"retry-after" in answer.lower()
        wait_until(lambda: small.state.backend.capacities.open_bodies.used == 0)

    def test_bodies_over_the_memory_limit_are_refused_but_small_ones_are_not(self, small, small_port, redis):
        set_only_pool(redis, CAPABILITY)
        with connected(small_port) as first:
            self.begin(first, small, b" " * 900_000)
            with connected(small_port) as second:
                second.sendall(
                    post_json("Authorization: Bearer k", "Content-Length: 900000") + b" " * 400_000
                )
                assert status(second.recv(1000)) in {429, 503}
            body = b'{"prompt": "a red ball"}'
            with connected(small_port) as third:
                third.sendall(post_json("Authorization: Bearer k", f"Content-Length: {len(body)}") + body)
                assert status(third.recv(10_000)) == 202
        wait_until(lambda: small.state.backend.capacities.body_memory.used == 0)
