"""A folder of weights at a source, and a server of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.weights.manifest import describe
from tests.model.weights.file_server import FileServer, serve_files

SIZES = {
    "dit/diffusion_pytorch_model-00001-of-00002.safetensors": 300_000,
    "dit/diffusion_pytorch_model-00002-of-00002.safetensors": 131_072,
    "vae/config.json": 17,
    "LICENSE": 0,
}


def write_files(folder: Path, sizes: dict[str, int] = SIZES, seed: int = 0) -> None:
    numbers = random.Random(seed)
    for path, size in sizes.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(numbers.randbytes(size))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with files and their manifest."""
    folder = tmp_path / "published"
    write_files(folder)
    describe(folder).write(folder)
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[FileServer]:
    with serve_files(published) as running:
        yield running
