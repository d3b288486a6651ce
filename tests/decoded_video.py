"""Decode finished videos and list the boxes of their files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

SAME_VIDEO_DB = 45
"""The least PSNR of two encoded videos whose frames differ by rounding only."""


@dataclass(frozen=True)
class DecodedVideo:
    """A decoded video. `frames` is uint8 [frames, height, width, 3]."""

    codec: str
    pixel_format: str
    fps: Fraction
    frames: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Return the width and the height."""
        _, height, width, _ = self.frames.shape
        return width, height


def psnr(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Return how alike frames are, in dB.

    A level of grey more or less before H.264 can change single pixels by many levels, since the encoder then
    decides otherwise for a block, but few of them.
    """
    error = np.square(frames.astype(float) - others).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def decode(content: bytes) -> DecodedVideo:
    """Decode all frames of an MP4 file."""
    with av.open(io.BytesIO(content), "r") as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        context = stream.codec_context
        assert stream.average_rate is not None
        assert context.pix_fmt is not None
        return DecodedVideo(context.name, context.pix_fmt, stream.average_rate, frames.astype(np.uint8))


def boxes(content: bytes) -> list[str]:
    """Return the names of the outermost boxes of an MP4 file, in order."""
    names, position = [], 0
    while position < len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        assert size >= 8, "small videos have no box of unlimited or 64-bit size"
        names.append(content[position + 4 : position + 8].decode("ascii"))
        position += size
    return names
