"""Fetching from real, partly hostile hosts on this machine."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import ipaddress
import socket
import ssl
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from service.errors import UnusableInput
from service.inputs import fetch as fetch_module
from service.inputs.fetch import FetchLimits, fetch
from service.outgoing import connection
from tests.service.hosts import host, redirecting, sending

LIMITS = FetchLimits(allow_private=True)
MAX_BYTES = 1000


def fetched(url, limits=LIMITS):
    target = io.BytesIO()
    fetch(url, target, MAX_BYTES, limits)
    return target.getvalue()


def test_response_body_is_written():
    with host(sending(b"x" * MAX_BYTES)) as url:
        assert fetched(url) == b"x" * MAX_BYTES


def test_query_is_sent_and_fragment_is_not():
    asked = []

    def answer(request):
        asked.append((request.path, request.headers["Host"]))
        sending(b"")(request)

    with host(answer) as url:
        fetched(f"{url}?size=2&a=%20b#part")
    assert asked == [("/file?size=2&a=%20b", url.split("/")[2])]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_followed(status):
    with host(sending(b"there")) as there, host(redirecting(there, status)) as here:
        assert fetched(here) == b"there"


def test_relative_redirect_is_followed():
    def answer(request):
        (redirecting("/other?x=1") if request.path == "/file" else sending(request.path.encode()))(request)

    with host(answer) as url:
        assert fetched(url) == b"/other?x=1"


def test_redirect_loop_is_refused():
    with host(redirecting("/file")) as url, pytest.raises(UnusableInput, match="redirects"):
        fetched(url)


@pytest.mark.parametrize(
    "elsewhere",
    [
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://user:word@127.0.0.1/",
        "//",
        "http://[::1",
        "ftp://a/b",
    ],
)
def test_redirect_to_another_scheme_is_refused(elsewhere):
    with host(redirecting(elsewhere)) as url, pytest.raises(UnusableInput):
        fetched(url)


def test_redirect_to_a_private_address_is_refused(monkeypatch):
    """Only the first host counts as public."""
    monkeypatch.setattr("service.outgoing.addresses.is_public", lambda address: str(address) != "127.0.0.2")
    private = pytest.raises(UnusableInput, match="not in the public internet")
    with host(redirecting("http://127.0.0.2:80/latest/meta-data")) as url, private:
        fetched(url, FetchLimits())


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1:{port}/",
            "http://localhost:{port}/",
            "http://127.1:{port}/",
            "http://0x7f.1:{port}/",
        ),
        *("http://2130706433:{port}/", "http://0:{port}/", "http://[::ffff:127.0.0.1]:{port}/"),
        *("http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://10.0.0.1/"),
    ],
)
def test_private_host_receives_no_connection(url):
    asked: list[object] = []
    with host(asked.append) as own, pytest.raises(UnusableInput, match="public internet"):
        fetched(url.format(port=own.split(":")[2].removesuffix("/file")), FetchLimits())
    assert asked == []


def test_connection_goes_to_the_checked_address(monkeypatch):
    """A name server that would answer differently the second time is asked only once."""
    answers = iter(["127.0.0.1"])
    real = socket.getaddrinfo

    def resolve(name, port, *rest, **options):
        return real(next(answers) if name == "changing.example" else name, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with host(sending(b"once")) as url:
        assert fetched(url.replace("127.0.0.1", "changing.example")) == b"once"


@pytest.mark.parametrize(
    "url",
    [
        *("", "cat.png", "/etc/passwd", "file:///etc/passwd", "ftp://example.com/a", "http://", "http:///a"),
        *("http://user@example.com/", "http://example.com:99999/", "http://example.com:0/", "http://[::1/"),
        *(
            "http://exämple.com/",
            "http://example.com/a b",
            "http://example.com/\r\nX: y",
            "javascript:alert(1)",
        ),
        *("http://127.0.0.1\\@example.com/", "HTTP ://example.com", "http://example.com\t.evil/"),
    ],
)
def test_invalid_url_is_refused(url):
    with pytest.raises(UnusableInput):
        fetched(url, FetchLimits())


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
def test_response_other_than_200_is_refused(status):
    with host(sending(b"", status)) as url, pytest.raises(UnusableInput, match=str(status)):
        fetched(url)


def test_too_large_file_is_not_read_to_its_end():
    sent = []

    def endless(request):
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"x" * 10_000)
                sent.append(10_000)
        except OSError:
            pass

    with host(endless) as url, pytest.raises(UnusableInput, match="larger than 1000 bytes"):
        fetched(url)
    assert sum(sent) < 100_000_000


class TestSlowHost:
    """Every kind of slow host is given up at the deadline."""

    LIMITS = FetchLimits(allow_private=True, total_timeout_s=0.3)

    @pytest.fixture
    def left(self):
        """Return an event that ends the host after the test."""
        left = threading.Event()
        yield left
        left.set()

    def test_slowly_sent_body_is_refused_at_the_deadline(self, left):
        def dripping(request):
            request.send_response(200)
            with contextlib.suppress(OSError):
                while not left.wait(0.02):
                    request.wfile.write(b"X-Drip: drop\r\n")
                    request.wfile.flush()

        with released(dripping, left) as url, pytest.raises(UnusableInput):
            fetched(url, self.LIMITS)

    def test_silent_host_is_refused_at_the_deadline(self, left):
        def silent(_):
            left.wait()

        with released(silent, left) as url, pytest.raises(UnusableInput, match="too slow"):
            fetched(url, self.LIMITS)

    def test_slow_head_is_refused_before_the_total_deadline(self, left):
        def dripping(request):
            with contextlib.suppress(OSError):
                request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                while not left.wait(0.02):
                    request.wfile.write(b"x")

        limits = FetchLimits(allow_private=True, head_timeout_s=0.3, total_timeout_s=60.0)
        with released(dripping, left) as url, pytest.raises(UnusableInput, match="too slow"):
            fetched(url, limits)

    def test_body_may_take_longer_than_a_head(self, left, monkeypatch):
        now, save = [0.0], fetch_module._save

        def save_later(*given):
            now[0] += 2 * LIMITS.head_timeout_s
            left.set()
            save(*given)

        def answer(request):
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
            left.wait()
            request.wfile.write(b"body")

        for module in (fetch_module, connection):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(fetch_module, "_save", save_later)
        with released(answer, left) as url:
            assert fetched(url) == b"body"


def test_tls_context_is_created_once_per_process():
    assert FetchLimits().tls is FetchLimits(allow_private=True).tls


@contextmanager
def released(answer, left):
    with host(answer) as url:
        try:
            yield url
        finally:
            left.set()


def test_closed_port_is_refused(free_address):
    with pytest.raises(UnusableInput, match="cannot be reached"):
        fetched(free_address)


def test_host_that_does_not_speak_http_is_refused():
    def babble(request):
        request.wfile.write(b"\x16\x03\x01 babble\r\n\r\n")

    with host(babble) as url, pytest.raises(UnusableInput, match="does not speak HTTP"):
        fetched(url)


def test_truncated_file_is_refused():
    def broken(request):
        request.send_response(200)
        request.send_header("Content-Length", "500")
        request.end_headers()
        request.wfile.write(b"half of it")

    with host(broken) as url, pytest.raises(UnusableInput):
        fetched(url)


@pytest.fixture
def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}/"


class TestTLS:
    @pytest.fixture
    def certificate(self, tmp_path):
        """Create a self-signed certificate for `videos.example`."""
        x509 = pytest.importorskip("cryptography.x509")
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "videos.example")])
        now = dt.datetime.now(dt.UTC)
        names = [x509.DNSName("videos.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.9"))]
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, hashes.SHA256())
        )
        kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path = tmp_path / "host.pem"
        path.write_bytes(key.private_bytes(*kinds) + made.public_bytes(serialization.Encoding.PEM))
        return path

    @pytest.fixture
    def https_port(self, certificate, monkeypatch):
        """Serve `videos.example` over TLS and return its port."""
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda name, *rest, **more: real(
                "127.0.0.1" if name == "videos.example" else name, *rest, **more
            ),
        )
        with tls_host(certificate) as port:
            yield port

    def test_certificate_must_match_the_host_in_the_url(self, certificate, https_port):
        trusting = ssl.create_default_context(cafile=certificate)
        limits = FetchLimits(allow_private=True, tls=trusting)
        assert fetched(f"https://videos.example:{https_port}/", limits) == b"safe"
        with pytest.raises(UnusableInput):
            fetched(f"https://127.0.0.1:{https_port}/", limits)

    def test_untrusted_certificate_is_refused(self, https_port):
        with pytest.raises(UnusableInput):
            fetched(f"https://videos.example:{https_port}/")


@contextmanager
def tls_host(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with plain, context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(10_000)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsafe")
            except OSError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
