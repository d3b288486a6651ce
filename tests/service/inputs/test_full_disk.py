"""A full disk for uploads is answered with 503 and a retry time, and makes the process not ready."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jobs.errors import DiskFull
from service.app import create_app
from service.inputs.uploads import upload_folder
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.hosts import host, sending
from tests.service.media import encoded, in_base64

LIMIT_BYTES = 256 << 10


@contextmanager
def full_disk(free_bytes: int = LIMIT_BYTES) -> Iterator[None]:
    """Let writes to a file fail after `free_bytes`, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noise(side: int) -> bytes:
    """Return a PNG that cannot be compressed, of about 3 bytes for each pixel."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return encoded(Image.fromarray(pixels))


def assert_refused(answer) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "disk_full")
    assert int(answer.headers["Retry-After"]) > 0


def test_image_in_json_is_refused(client: TestClient):
    body = {"prompt": "a ball", "image": {"base64": in_base64(noise(400))}}
    with full_disk():
        assert_refused(client.post("/generate", json=body))
    assert client.post("/generate", json=body).status_code == 202


def test_image_from_a_url_is_refused(client: TestClient):
    with host(sending(noise(400))) as url:
        body = {"prompt": "a ball", "image": {"url": url}}
        with full_disk():
            assert_refused(client.post("/generate", json=body))
        assert client.post("/generate", json=body).status_code == 202


@pytest.mark.parametrize(("path", "field"), [("/generate", "image"), ("/v1/videos", "input_reference")])
def test_form_that_is_spooled_to_the_disk_is_refused(client: TestClient, path, field):
    with full_disk():
        answer = client.post(path, files={field: ("noise.png", noise(700))}, data={"prompt": "a ball"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "disk_full")


def test_form_is_spooled_to_the_upload_folder(redis_server, redis, tmp_path, monkeypatch):
    upload_dir = tmp_path / "uploads"
    upload_dir.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not-there"))
    with TestClient(create_app(settings_for(redis_server, tmp_path, upload_dir=upload_dir))) as client:
        set_only_pool(redis, CAPABILITY)
        image = ("noise.png", noise(700))
        answer = client.post("/generate", files={"image": image}, data={"prompt": "a ball"})
    assert answer.status_code == 202
    assert list(upload_dir.iterdir()) == []


def test_folder_of_a_request_is_removed_when_the_disk_is_full(tmp_path):
    with full_disk(), pytest.raises(DiskFull), upload_folder(tmp_path) as folder:
        (folder / "clip.received").write_bytes(bytes(LIMIT_BYTES + 1))
    assert list(tmp_path.iterdir()) == []


def test_process_is_not_ready_while_the_disk_is_full(client: TestClient, monkeypatch):
    assert client.get("/readyz").status_code == 200
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert_refused(client.get("/readyz"))
    assert client.get("/livez").status_code == 200
