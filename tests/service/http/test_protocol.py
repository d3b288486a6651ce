"""Connections that make no progress are closed; requests with two lengths are refused."""

from __future__ import annotations

import asyncio
import http.client
import socket
from contextlib import ExitStack, asynccontextmanager

import pytest
import uvicorn

from service.app import create_app
from service.http.protocol import ConnectionLimits, server_options
from tests.service.conftest import serving, settings_for
from tests.service.http.raw import (
    connected,
    drip_until_answered,
    error_code,
    head,
    post_json,
    read_answer,
    read_until_closed,
    status,
)
from tests.waiting import wait_until

LIVEZ = head("GET", "/livez")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("protocol")


@pytest.fixture(scope="module")
def port(redis_server, folder):
    """Serve an app with a short timeout of sending and few connections."""
    limits = {"send_timeout_s": 0.3, "max_connections": 8, "head_timeout_s": 60.0, "body_timeout_s": 60.0}
    with serving(create_app(settings_for(redis_server, folder, **limits))) as port:
        yield port


@pytest.fixture(scope="module")
def impatient(redis_server, folder):
    """Serve an app with a short timeout of heads, also of the next one on a connection."""
    with serving(create_app(settings_for(redis_server, folder, head_timeout_s=1.0))) as port:
        yield port


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("transfer-encoding: CHUNKED", "content-length: 0"),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/livez"])
def test_request_with_two_lengths_is_refused_and_its_connection_closed(port, path, headers):
    with connected(port) as connection:
        connection.sendall(head("POST", path, *headers) + b"0\r\n\r\n" + LIVEZ)
        answer = read_until_closed(connection)
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1") == 1  # the smuggled request is not answered


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"no request\r\n\r\n", b"illegal request line"),
        (head("GET", "/livez", "no header"), b"illegal header line"),
        (b"GET /livez HTTP/1.1\r\n\r\n", b"Host"),
        (head("GET", "http:///livez"), b"illegal host"),
        (head("GET", "http:livez"), b"illegal host"),
        (head("GET", "http://user@localhost/livez"), b"illegal host"),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 100_000, b"too long"),
    ],
)
def test_malformed_request_gets_an_error_that_names_the_reason(port, sent, reason):
    with connected(port) as connection:
        connection.sendall(sent)
        answer = read_until_closed(connection)
    assert (status(answer), error_code(answer)) == (400, "malformed_request")
    assert reason in answer


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://localhost/livez", 200),
        ("HTTPS://localhost:8000/livez", 200),
        ("http://localhost/livez?x=1", 422),
    ],
)
def test_absolute_form_of_a_target_is_accepted(port, target, expected):
    with connected(port) as connection:
        connection.sendall(head("GET", target))
        assert status(read_answer(connection)) == expected


def test_absolute_form_without_a_path_means_the_console(port):
    with connected(port) as connection:
        connection.sendall(head("HEAD", "http://localhost"))
        assert status(connection.recv(1000)) == 200


@pytest.mark.usefixtures("redis")
def test_host_of_the_absolute_form_replaces_the_header(port):
    """The service has no keys, so it answers under its own names only."""
    with connected(port) as connection:
        connection.sendall(head("GET", "http://attacker.example/jobs"))
        assert error_code(read_answer(connection)) == "host_not_allowed"


@pytest.mark.parametrize("sent", [b"G", b"GET /livez HTTP/1.1\r\nHost: local"])
def test_incomplete_head_is_answered_408(impatient, sent):
    with connected(impatient) as connection:
        connection.sendall(sent)
        answer = read_until_closed(connection)
    assert (status(answer), error_code(answer)) == (408, "head_too_slow")


def test_slowly_sent_head_gets_no_extra_time(impatient):
    with connected(impatient) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        answer = drip_until_answered(connection, b"x")
    assert status(answer) == 408


def test_connection_without_a_request_is_closed_silently(impatient):
    with connected(impatient) as connection:
        assert read_until_closed(connection) == b""


def test_body_that_continues_after_the_response_closes_the_connection(impatient):
    with connected(impatient) as connection:
        connection.sendall(head("POST", "/nowhere", "Content-Length: 1000000") + b"x")
        assert status(connection.recv(1000)) == 404
        connection.settimeout(0.02)
        for _ in range(1000):
            try:
                connection.sendall(b"x")
                if not connection.recv(1000):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("the connection stays open")


def test_garbage_after_the_response_closes_the_connection(impatient, caplog):
    with connected(impatient) as connection:
        connection.sendall(head("POST", "/nowhere", "Transfer-Encoding: chunked"))
        connection.recv(1000)
        connection.sendall(b"no chunk\r\n")
        read_until_closed(connection)
    assert "Traceback" not in caplog.text


def test_requests_in_time_share_a_connection(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.auto_open = 0
    for _ in range(3):
        connection.request("GET", "/livez")
        assert connection.getresponse().read() == b'{"status":"ok"}'
    connection.close()


def test_new_connection_replaces_the_longest_waiting_one(port):
    with ExitStack() as opened:
        idle = [opened.enter_context(connected(port)) for _ in range(20)]
        with connected(port) as connection:
            connection.sendall(LIVEZ)
            assert status(connection.recv(1000)) == 200
        assert read_until_closed(idle[0]) == b""


def test_connection_over_the_limit_is_refused_if_all_others_are_in_use(port, redis):
    with ExitStack() as opened:
        for _ in range(8):
            connection = opened.enter_context(connected(port))
            connection.sendall(post_json("Content-Length: 10", "Expect: 100-continue"))
            assert status(connection.recv(1000)) == 100  # the service waits for its body
        with connected(port) as connection:
            answer = read_until_closed(connection)
    assert (status(answer), error_code(answer)) == (503, "busy")


def test_client_that_does_not_read_is_disconnected(port):
    """The client pipelines requests and reads no responses."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
            while True:
                connection.sendall(head("GET", "/openapi.json") * 50)


def test_new_connection_replaces_one_whose_client_does_not_read(redis_server, folder, monkeypatch):
    monkeypatch.setattr("service.http.protocol._LONG_STALL_S", 0.1)
    settings = settings_for(redis_server, folder, max_connections=2, send_timeout_s=3600.0)
    with serving(create_app(settings)) as port, ExitStack() as opened:
        for _ in range(2):
            connection = opened.enter_context(connected(port))
            connection.sendall(head("GET", "/openapi.json") * 100)
            assert connection.recv(1)

        def is_alive():
            with connected(port) as another:
                another.sendall(LIVEZ)
                return status(another.recv(1000)) == 200

        wait_until(is_alive)


@asynccontextmanager
async def sending(size_bytes):
    """Serve a response that is one piece of this size. Yield the server's connections and its address."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(size_bytes)})

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, lifespan="off", **server_options(ConnectionLimits()))
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield server.server_state.connections, listener.getsockname()
        finally:
            server.should_exit = True
            await serving


async def read_slowly(read_before_bytes):
    """Read nothing until the connection has stalled, then slowly. Return whether it no longer has stalled."""
    loop = asyncio.get_running_loop()
    async with sending(64 << 20) as (connections, address):
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, LIVEZ)
            while read_before_bytes > 0:
                read_before_bytes -= len(await loop.sock_recv(client, 65536))
            async with asyncio.timeout(60):
                while not any(connection.stalled_s > 0.3 for connection in connections):
                    await asyncio.sleep(0.01)
            (connection,) = connections
            for _ in range(160):
                assert await loop.sock_recv(client, 4096)
                await asyncio.sleep(0.001)
                if connection.stalled_s < 0.3:
                    break
            return 0.0 < connection.stalled_s < 0.3


@pytest.mark.parametrize("read_before_bytes", [1, 16 << 20])
def test_client_that_reads_slowly_has_not_stalled(monkeypatch, read_before_bytes):
    """The kernel's buffers grow with what the client reads at first."""
    monkeypatch.setattr("service.http.protocol._CHECK_S", 0.01)
    assert asyncio.run(read_slowly(read_before_bytes))
