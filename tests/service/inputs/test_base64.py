"""Base64 may have line breaks, and the size limit is for what it encodes."""

from __future__ import annotations

from base64 import encodebytes

import pytest

from tests.service.conftest import settings_for
from tests.service.media import encoded, in_base64, picture

IMAGE = encoded(picture())
WRAPPED = encodebytes(IMAGE).decode()


@pytest.fixture(scope="module")
def settings(redis_server, tmp_path_factory):
    return settings_for(redis_server, tmp_path_factory.mktemp("base64"), max_image_bytes=len(IMAGE))


@pytest.mark.parametrize("text", [in_base64(IMAGE), WRAPPED, WRAPPED.replace("\n", " \r\n\t")])
def test_white_space_does_not_count_towards_the_size_limit(client, text):
    answer = client.post("/generate", json={"prompt": "a", "image": {"base64": text}})
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("num_bytes", [1, 1000])
def test_larger_content_is_refused(client, num_bytes):
    text = encodebytes(IMAGE + bytes(num_bytes)).decode()
    answer = client.post("/generate", json={"prompt": "a", "image": {"base64": text}})
    assert answer.json()["error"]["message"] == f"image: is larger than {len(IMAGE)} bytes"


@pytest.mark.parametrize("text", ["AAA", "AA=A", "ÄÄÄÄ", "AAAA\u00a0"])
def test_malformed_base64_is_refused(client, text):
    answer = client.post("/generate", json={"prompt": "a", "image": {"base64": text}})
    assert answer.json()["error"]["message"] == "image: is not base64"
