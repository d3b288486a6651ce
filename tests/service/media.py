"""Generate images and clips for tests."""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib
from typing import Any

import av
import numpy as np
from PIL import Image


def picture(height: int = 64, width: int = 96) -> Image.Image:
    """Return a picture with a red, green, blue and white quarter, row by row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def clip(
    num_frames: int = 17,
    height: int = 64,
    width: int = 96,
    codec: str = "libx264",
    kind: str = "mp4",
    rate: int = 15,
    pixel_format: str = "yuv420p",
) -> bytes:
    """Return a clip as the bytes of a file. It gets brighter from frame to frame."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for index in range(num_frames):
            pixels = np.full((height, width, 3), index * 255 // num_frames, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def turned_clip(clockwise: int = 90, content: bytes | None = None) -> bytes:
    """Return a clip with a rotation in its container, as telephones write it."""
    content = clip() if content is None else content
    cos, sin = (round(part(math.radians(clockwise)) * 0x10000) for part in (math.cos, math.sin))
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", cos, sin, 0, -sin, cos, 0, 0, 0, 0x40000000)
    track = content.index(b"tkhd")
    return content[:track] + content[track:].replace(upright, turned, 1)


def pictures(image: Image.Image, num_frames: int = 5) -> bytes:
    """Return a clip of a single picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=15, options={"crf": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = image.width, image.height, "yuv420p"
        for _ in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return file.getvalue()


def sound() -> bytes:
    """Return an MP4 without a video track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def png_that_says(height: int, width: int) -> bytes:
    """Return a PNG of a few bytes whose header declares this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def in_base64(content: bytes) -> str:
    """Return content in base64."""
    return base64.b64encode(content).decode()
