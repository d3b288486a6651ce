"""Looking at finished films: what is in the file, and where."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Film:
    """A decoded film; `frames` is uint8 [frames, height, width, 3]."""

    codec: str
    pixel_format: str
    fps: Fraction
    frames: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        _, height, width, _ = self.frames.shape
        return width, height


def decode(content: bytes) -> Film:
    """Decode an MP4 file, all of it."""
    with av.open(io.BytesIO(content), "r") as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        context = stream.codec_context
        assert stream.average_rate is not None
        assert context.pix_fmt is not None
        return Film(context.name, context.pix_fmt, stream.average_rate, frames.astype(np.uint8))


def boxes(content: bytes) -> list[str]:
    """The names of an MP4's outermost boxes, in order."""
    names, position = [], 0
    while position < len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        assert size >= 8, "a box that goes to the end, or a large one: not in our small films"
        names.append(content[position + 4 : position + 8].decode("ascii"))
        position += size
    return names
