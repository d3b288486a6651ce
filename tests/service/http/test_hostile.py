"""Hostile requests: each is refused with a clear 4xx and leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import json
import socket
import struct
import zlib

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.app import create_app
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.hosts import host, redirecting, sending
from tests.service.media import clip, encoded, in_base64, picture, png_that_says
from tests.tickets import num_tickets

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}


@pytest.fixture(scope="module")
def settings(redis_server, tmp_path_factory):
    """Return the default settings with small limits."""
    return settings_for(
        redis_server,
        tmp_path_factory.mktemp("hostile"),
        fetch_private_hosts=False,
        max_json_bytes=1 << 20,
        max_body_bytes=1 << 21,
        max_image_bytes=1 << 19,
        max_image_pixels=1 << 20,
        max_video_frames=100,
    )


@pytest.fixture
def refused(client, redis, worker):
    """Return a check that a response is a 4xx in the error shape and that nothing was stored."""
    stored = list(worker.storage.keys("jobs/"))

    def check(answer):
        assert 400 <= answer.status_code < 500, answer.text
        error = answer.json()["error"]
        assert error["code"]
        assert error["message"]
        assert "Traceback" not in answer.text
        assert answer.headers["X-Request-Id"]
        assert client.get("/jobs").json()["jobs"] == []
        assert num_tickets(redis) == 0
        assert list(worker.storage.keys("jobs/")) == stored
        return error

    return check


def part(head, content=b"x"):
    return b"--edge\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + content + b"\r\n"


PRIVATE = [
    "http://127.0.0.1/",
    "http://localhost/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://0/",
    "http://0.0.0.0/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://127.0.0.1./",
    "http://017700000001/",
    "http://0x7f.1/",
    "http://[2002:7f00:1::]/",
    "http://[fe80::1%25lo]/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://10.0.0.1/",
    "http://192.168.1.1/",
    "http://172.16.0.1/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://user:secret@127.0.0.1/",
    "http://127.0.0.1#@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127。0。0。1/",
    "http://①②⑦.0.0.1/",
    "http://LOCALHOST./",
]
NO_ADDRESSES = [
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "ftp://127.0.0.1/a.png",
    "//127.0.0.1/a.png",
    "/etc/passwd",
    "http://",
    "http:///a",
    "http://[",
    "http://a b/",
    "http://example.com:99999/",
    "http://example.com:-1/",
    "http://exa\r\nmple.com/",
    "javascript:alert(1)",
    "data:,hello",
    "data:image/png;base64,@@@",
    "http://" + "a" * 300 + ".com/",
    "http://\u0000/",
]


@pytest.mark.parametrize("url", PRIVATE + NO_ADDRESSES)
def test_private_and_invalid_urls_are_refused(client, refused, url):
    error = refused(client.post("/generate", json={"prompt": "a", "image": {"url": url}}))
    assert error["field"].startswith("image")
    theirs = {"prompt": "a", "input_reference": {"image_url": url}}
    assert refused(client.post("/v1/videos", json=theirs))["param"].startswith("input_reference")


def test_private_host_receives_no_connection(client, refused):
    asked = []

    def answer(request):
        asked.append(request.path)
        sending(encoded(picture()))(request)

    with host(answer) as url:
        refused(client.post("/generate", json={"prompt": "a", "image": {"url": url}}))
        refused(client.post("/generate", json={"prompt": "a", "video": {"url": url}}))
    assert asked == []


class TestPublicHost:
    """Allow private hosts: those of these tests are on this machine."""

    @pytest.fixture
    def client(self, client, redis_server, tmp_path):
        limits = {"max_image_bytes": 1 << 19, "fetch_timeout_s": 1.0}
        with TestClient(create_app(settings_for(redis_server, tmp_path, **limits))) as trusting:
            yield trusting

    def order(self, client, url):
        return client.post("/generate", json={"prompt": "a", "image": {"url": url}})

    def test_redirect_loop_is_refused(self, client, refused):
        with host(redirecting("/file")) as url:
            refused(self.order(client, url))

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "gopher://127.0.0.1/", "http://[", ""])
    def test_redirect_to_another_scheme_is_refused(self, client, refused, target):
        with host(redirecting(target)) as url:
            refused(self.order(client, url))

    def test_too_large_file_is_refused(self, client, refused):
        with host(sending(b"x" * ((1 << 19) + 1))) as url:
            assert "larger" in refused(self.order(client, url))["message"]

    def test_endless_file_is_refused(self, client, refused):
        def answer(request):
            request.send_response(200)
            request.end_headers()
            try:
                while True:
                    request.wfile.write(b"x" * 65536)
            except OSError:
                pass

        with host(answer) as url:
            refused(self.order(client, url))

    def test_slow_host_is_refused(self, client, refused):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            refused(self.order(client, f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"))

    def test_decompression_bomb_is_refused(self, client, refused):
        packed = gzip.compress(b"x" * 10_000_000)

        def answer(request):
            request.send_response(200)
            request.send_header("Content-Encoding", "gzip")
            request.send_header("Content-Length", str(len(packed)))
            request.end_headers()
            request.wfile.write(packed)

        with host(answer) as url:
            refused(self.order(client, url))

    def test_error_response_is_refused(self, client, refused):
        with host(sending(encoded(picture()), 404)) as url:
            refused(self.order(client, url))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def text_bomb():
    """Return a PNG whose compressed text grows a thousandfold."""
    content = encoded(picture())
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 50_000_000))
    return content[:33] + bomb + content[33:]


def many_frames():
    file = io.BytesIO()
    frame = Image.new("P", (1000, 1000))
    frame.save(file, "GIF", save_all=True, append_images=[frame] * 50)
    return file.getvalue()


def moving(kind):
    """Return an animation of many frames."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), (number, 0, 0)) for number in range(200)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def larger_than_said():
    """Return a clip whose frames declare a far larger size than its container."""
    content = clip(3, codec="mjpeg", kind="mov", pixel_format="yuvj420p")
    said, really = struct.pack(">HH", 64, 96), struct.pack(">HH", 16000, 16000)
    assert b"\xff\xc0\x00\x11\x08" + said in content
    return content.replace(b"\xff\xc0\x00\x11\x08" + said, b"\xff\xc0\x00\x11\x08" + really)


def said_to_be_large():
    """Return a clip whose container declares the largest possible size."""
    content = clip()
    entry = content.index(b"avc1", content.index(b"stsd")) + 28
    assert content[entry : entry + 4] == struct.pack(">HH", 96, 64)
    return content[:entry] + b"\xff\xff\xff\xff" + content[entry + 4 :]


IMAGES = {
    "a bomb of pixels": png_that_says(30000, 30000),
    "more pixels than fit into memory": png_that_says(2**31 - 1, 2**31 - 1),
    "no pixels": png_that_says(0, 0),
    "a line": png_that_says(1, 100_000),
    "a bomb of text": text_bomb(),
    "half of it": encoded(picture())[:100],
    "the head alone": b"\x89PNG\r\n\x1a\n",
    "nothing": b"",
    "a script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(/etc/passwd) run",
    "an archive": b"PK\x03\x04" + b"\0" * 100,
    "a page": b"<html></html>",
    "an icon of Windows": b"\0\0\1\0\1\0" + b"\xff" * 100,
    "a clip": clip(3),
    "zeros": bytes(1000),
    "too many bytes": b"\x89PNG\r\n\x1a\n" + bytes(1 << 19),
}
CLIPS = {
    "nothing": b"",
    "zeros": bytes(1000),
    "half of it": clip(17)[:500],
    "too many frames": clip(101),
    "an image": encoded(picture()),
    "larger pictures than it says": larger_than_said(),
    "a playlist that names a file": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
    "a list that names a file": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "a description of a stream": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
}


@pytest.mark.parametrize("name", IMAGES)
def test_invalid_images_are_refused(client, refused, name):
    answer = client.post("/generate", data={"prompt": "a"}, files={"image": IMAGES[name]})
    if name == "nothing":  # browsers send empty file fields like this
        assert answer.status_code in {202, 422}
        return
    assert refused(answer)["code"] == "invalid_input"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_is_used(client, kind):
    content = many_frames() if kind == "GIF" else moving(kind)
    answer = client.post("/generate", data={"prompt": "a"}, files={"image": content})
    assert answer.status_code == 202
    assert answer.json()["request"]["image"]["num_frames"] == 1


def test_declared_size_of_a_file_is_not_trusted(client):
    answer = client.post("/generate", data={"prompt": "a"}, files={"video": said_to_be_large()})
    assert answer.status_code == 202, answer.text
    video = answer.json()["request"]["video"]
    # Two declared sizes give the pixels a shape; the number of pixels is that of the frames.
    assert (video["width"], video["height"]) == (144, 64)


@pytest.mark.parametrize("name", [name for name in CLIPS if name != "nothing"])
def test_invalid_clips_are_refused(client, refused, name):
    answer = client.post("/generate", data={"prompt": "a"}, files={"video": CLIPS[name]})
    assert refused(answer)["code"] == "invalid_input"
    theirs = client.post("/v1/videos/extensions", data=EXTENSION, files={"video": CLIPS[name]})
    assert refused(theirs)["param"] == "video"


EXTENSION = {"prompt": "on", "seconds": "1"}
BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"prompt"',
    b"\xff\xfe",
    b'{"prompt": "\xff"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": NaN}',
    b'{"prompt": "a", "seed": 1e400}',
    b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    b'{"prompt": "a", "guidance_scale": Infinity}',
    b"[" * 100_000,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b'{"prompt": "' + b"x" * (1 << 20) + b'"}',
    json.dumps({"prompt": "a", "metadata": {str(number): "" for number in range(1000)}}).encode(),
    json.dumps({"prompt": "a", "__proto__": {}}).encode(),
    json.dumps({"prompt": "a", "id": "../../etc"}).encode(),
    json.dumps({"prompt": "a", "image": {"key": "jobs/other/1/video.mp4"}}).encode(),
    json.dumps({"prompt": "a", "image": {"path": "/etc/passwd"}}).encode(),
    b'{"prompt": "a", "prompt": "b"}',
    b'{"prompt": "a", "metadata": {"k": "1", "k": "2"}}',
    b'{"prompt": "a", "image": {"url": "http://example.com/", "url": "file:///etc/passwd"}}',
    b'{"prompt": "a\\u0000b"}',
    b'{"prompt": "a", "negative_prompt": "\\u0000"}',
    b'{"prompt": "a", "metadata": {"\\u0000": "1"}}',
    b'{"prompt": "a", "metadata": {"k": "\\u0000"}}',
    b'{"prompt": "a", "metadata": {"k": "\\udfff"}}',
    b'{"prompt": "a", "seed": -0.0}',
    b'{"prompt": "a", "seed": 18446744073709551616}',
    b'{"prompt": "a", "height": true, "width": true}',
    b'{"prompt": "a", "webhook_url": "http://user:secret@example.com/"}',
    b'{"prompt": "a", "webhook_url": "http://example.com/\\u0000"}',
    b'{"prompt": "a", "webhook_url": "file:///etc/passwd"}',
    b"\xef\xbb\xbf{}",
    b'{"prompt": "a"}{"prompt": "b"}',
    b'{"prompt": "a",}',
    b"{'prompt': 'a'}",
]


@pytest.mark.parametrize("path", ["/generate", "/v1/videos", "/v1/videos/extensions"])
@pytest.mark.parametrize("number", range(len(BODIES)))
def test_invalid_json_is_refused(client, refused, path, number):
    refused(client.post(path, content=BODIES[number], headers=JSON))


FORMS = [
    b"",
    b"--edge",
    b"--edge--",
    b"--other\r\n\r\n--other--\r\n",
    b"--edge\r\n\r\nx\r\n--edge--\r\n",
    b"--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n--edge--\r\n",
    b"--edge\r\nContent-Disposition: form-data; name=\r\n\r\nx\r\n--edge--\r\n",
    part(b'name="prompt"'),  # without an end
    part(b'name="prompt"') * 2 + b"--edge--\r\n",
    part(b'name="prompt"') * 2000 + b"--edge--\r\n",
    part(b'name="image"; filename="a"') * 10 + b"--edge--\r\n",
    part(b'name="prompt"; filename="a"') + b"--edge--\r\n",
    part(b'name="prompt"', b"x" * (2 << 20)) + b"--edge--\r\n",
    part(b'name="' + b"a" * 100_000 + b'"') + b"--edge--\r\n",
    part(b'name="video[id][x]"') + b"--edge--\r\n",
    part(b'name="seed"', b"[" * 50_000) + b"--edge--\r\n",
    b"--edge\r\n" + b"X-Header: x\r\n" * 10_000 + b"\r\nx\r\n--edge--\r\n",
    b"".join(part(b'name="field%d"' % number) for number in range(10_000)) + b"--edge--\r\n",
    part(b'name="image"\r\nContent-Type: multipart/mixed; boundary=in', b"--in\r\n\r\nx\r\n--in--")
    + b"--edge--\r\n",
    part(b'name="prompt"', b"a\0b") + b"--edge--\r\n",
    part(b'name="prompt"', b"\xff\xfe") + part(b'name="size"', b"1x1") + b"--edge--\r\n",
    part(b'name="prompt"') + part(b'name="metadata"', b'{"k": "1", "k": "2"}') + b"--edge--\r\n",
    part(b'name="prompt"') + part(b'name="__proto__"') + b"--edge--\r\n",
]


@pytest.mark.parametrize("path", ["/generate", "/v1/videos", "/v1/videos/extensions"])
@pytest.mark.parametrize("number", range(len(FORMS)))
def test_invalid_forms_are_refused(client, refused, path, number):
    refused(client.post(path, content=FORMS[number], headers=FORM))


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text/plain",
        "application/xml",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 10_000,
        "application/x-www-form-urlencoded",
        "\x00",
    ],
)
def test_other_media_types_are_refused(client, refused, media_type):
    refused(client.post("/generate", content=b'{"prompt": "a"}', headers={"Content-Type": media_type}))


@pytest.mark.parametrize("name", ["../../../etc/passwd", "C:\\a.png", "a\0b.png", "/etc/passwd", "." * 5000])
def test_file_names_have_no_effect(client, worker, name):
    answer = client.post("/generate", data={"prompt": "a"}, files={"image": (name, encoded(picture()))})
    if answer.status_code == 400:  # a name that does not fit into a header
        return
    assert answer.status_code == 202
    assert all(".." not in key and "passwd" not in key for key in worker.storage.keys("jobs/"))


@pytest.mark.parametrize(
    "job_id",
    ["%2e%2e", "..%2f..%2fetc%2fpasswd", "a%00b", "*", "%0a", "a" * 5000, "longcat:job:x", "{}", "%ff"],
)
@pytest.mark.parametrize("path", ["/jobs/{}", "/jobs/{}/video", "/v1/videos/{}", "/v1/videos/{}/content"])
def test_invalid_job_ids_are_not_found(client, refused, path, job_id):
    refused(client.get(path.format(job_id)))


@pytest.mark.parametrize(
    "query",
    [
        "limit=1e9",
        "limit=-1",
        "limit=9" * 50,
        "after=" + "x" * 5000,
        "after=%00",
        "status=%27",
        "limit=1&limit=x",
    ],
)
@pytest.mark.parametrize("path", ["/jobs", "/v1/videos"])
def test_invalid_pages_are_refused(client, refused, path, query):
    if path == "/v1/videos" and query.startswith("status"):
        pytest.skip("it has no states to choose from")
    refused(client.get(f"{path}?{query}"))


@pytest.mark.parametrize("kind", [JSON, FORM])
def test_body_of_unknown_length_is_limited(client, refused, kind):
    def endless():
        yield (
            b'{"prompt": "' if kind is JSON else b'--edge\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
        )
        for _ in range(100):
            yield b"x" * 65536

    answer = client.post("/generate", content=endless(), headers=kind)
    assert refused(answer)["code"] in {"body_too_large", "malformed_body"}


@pytest.mark.parametrize("kind", [JSON, FORM])
@pytest.mark.parametrize("length", ["99999999999", "9" * 400])
def test_body_with_a_too_large_content_length_is_not_read(client, refused, kind, length):
    def never():
        raise AssertionError
        yield b""

    answer = client.post("/generate", content=never(), headers={**kind, "Content-Length": length})
    assert refused(answer)["code"] == "body_too_large"


def test_too_large_base64_is_refused(client, refused):
    body = {"prompt": "a", "image": {"base64": in_base64(bytes((1 << 19) + 1))}}
    assert "larger" in refused(client.post("/generate", json=body))["message"]


def test_service_still_works_after_hostile_requests(client):
    set_only_pool(client.app.state.backend.redis, CAPABILITY)
    assert client.post("/generate", json={"prompt": "a red ball"}).status_code == 202
