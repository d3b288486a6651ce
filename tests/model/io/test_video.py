"""Videos are written frame by frame; images and clips are read."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from model.io.video import VideoWriter, read_clip, read_image
from model.spec.errors import InputError
from model.spec.geometry import Size


def gradient(num_frames: int, height: int = 64, width: int = 96) -> torch.Tensor:
    """Smooth colours that move: a codec keeps them well."""
    ramp = torch.linspace(0, 200, width).expand(height, -1)
    frames = [
        torch.stack([ramp, ramp.flip(1), torch.full_like(ramp, 10.0 * i)], -1) for i in range(num_frames)
    ]
    return torch.stack(frames).to(torch.uint8)


def write(path, frames, fps=15):
    with VideoWriter(path, Size(*frames.shape[1:3]), fps) as writer:
        for chunk in frames.split(4):
            writer.add(chunk)
    return writer


def test_video_has_all_frames_and_their_rate(tmp_path):
    frames = gradient(13)
    writer = write(tmp_path / "video.mp4", frames)
    assert writer.num_frames == 13
    with av.open(tmp_path / "video.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (13, 15)
        assert (stream.height, stream.width) == (64, 96)
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"


def test_colours_of_a_video_are_kept(tmp_path):
    frames = gradient(9)
    write(tmp_path / "video.mp4", frames)
    back = read_clip(tmp_path / "video.mp4")
    assert back.shape == frames.shape
    assert (back.float() - frames.float()).abs().mean() < 4


ENCODE = """
import hashlib, sys
from pathlib import Path
import torch
from model.io.video import VideoWriter
from model.spec.geometry import Size

corners = torch.rand(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
frames = torch.nn.functional.interpolate(corners, size=(9, 64, 96), mode="trilinear")[0].movedim(0, -1)
path = Path(sys.argv[1])
with VideoWriter(path, Size(64, 96), 15) as writer:
    writer.add((frames * 255).byte())
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_file_does_not_depend_on_the_memory_that_the_process_has_freed(tmp_path):
    """glibc fills freed memory with the bytes that MALLOC_PERTURB_ names."""

    def encode(perturbation: str) -> str:
        command = [sys.executable, "-c", ENCODE, str(tmp_path / "video.mp4")]
        environment = os.environ | {"MALLOC_PERTURB_": perturbation, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert len({encode(perturbation) for perturbation in ("0", "1", "127")}) == 1


def test_frames_are_converted_without_threads_of_their_own(tmp_path, monkeypatch):
    pictures = []  # kept, so that the threads that convert them are kept, too

    def from_ndarray(*args, **options):
        pictures.append(av.video.frame.VideoFrame.from_ndarray(*args, **options))
        return pictures[-1]

    monkeypatch.setattr(av, "VideoFrame", SimpleNamespace(from_ndarray=from_ndarray))
    frames = gradient(9)
    with VideoWriter(tmp_path / "video.mp4", Size(64, 96), 15) as writer:
        writer.add(frames[:1])  # the encoder starts its threads
        num_threads = psutil.Process().num_threads()
        writer.add(frames[1:])
        assert psutil.Process().num_threads() == num_threads
    assert len(pictures) == 9


def test_video_can_be_played_while_it_loads(tmp_path):
    write(tmp_path / "video.mp4", gradient(5))
    content = (tmp_path / "video.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_arrays_are_read_exactly(tmp_path):
    frames = gradient(3)
    np.savez(tmp_path / "clip.npz", frames=frames.numpy())
    assert torch.equal(read_clip(tmp_path / "clip.npz"), frames)


@pytest.mark.parametrize("suffix", ["png", "PNG", "webp", "jpg"])
def test_images_are_read(tmp_path, suffix):
    frame = gradient(1)[0]
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(frame.numpy()).save(path, quality=95)
    assert (read_image(path).float() - frame.float()).abs().mean() < 5


def test_images_lose_their_transparency_and_find_their_orientation(tmp_path):
    image = Image.new("RGBA", (6, 4), (255, 0, 0, 128))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "image.png", exif=exif)
    assert read_image(tmp_path / "image.png").shape == (6, 4, 3)


def test_a_clip_is_no_image(tmp_path):
    np.savez(tmp_path / "clip.npz", frames=gradient(3).numpy())
    with pytest.raises(InputError, match=r"image: .* has 3 frames"):
        read_image(tmp_path / "clip.npz")
    with pytest.raises(InputError, match="not an image"):
        read_image(tmp_path / "clip.mp4")


@pytest.mark.parametrize("name", ["clip.mp4", "image.png", "clip.npz"])
def test_broken_files_are_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match="is missing"):
        read_clip(path)
    path.write_bytes(b"nothing like it")
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        read_clip(path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"pictures": np.zeros((1, 4, 4, 3), np.uint8)},
        {"frames": np.zeros((1, 4, 4, 3), np.float32)},
        {"frames": np.zeros((4, 4, 3), np.uint8)},
        {"frames": np.zeros((0, 4, 4, 3), np.uint8)},
        {"frames": np.zeros((1, 4, 4, 1), np.uint8)},
    ],
)
def test_arrays_that_are_no_frames_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "clip.npz", **arrays)
    with pytest.raises(InputError):
        read_clip(tmp_path / "clip.npz")
