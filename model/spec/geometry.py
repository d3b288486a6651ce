"""Compute how pixels and frames map to latents, and how the frames of a refinement are laid out.

The numbers are those of LongCat-Video's VAE (8×8 pixels to a latent; the first frame to a latent frame of its
own, then four frames to each) and of its refinement, which works in bricks of four latent frames.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

VAE_STRIDE = 8  # pixels to a latent row or column
FRAME_STRIDE = 4  # frames to a latent frame, after the first frame
SIDE_MULTIPLE = 16  # VAE stride × patch size
BRICK_FRAMES = 4  # latent frames in a brick; refinement uses whole bricks
LATENTS_AT_A_TIME = 4  # latent frames that the VAE encodes or decodes at a time, at most
_TIME_ERROR_S = 1e-3  # containers round times to milliseconds
MAX_ELEMENTS = 1 << 30
"""Elements of a tensor of the VAE, where several latent frames at a time would make it larger.

Kernels for CUDA may number elements with 31 bits. Half as many also bound the memory: 7.5 GB in bf16 at
720p.
"""


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


class Clip(NamedTuple):
    """Size in pixels and number of frames of a video."""

    height: int
    width: int
    num_frames: int

    @property
    def size(self) -> Size:
        """Return height and width."""
        return Size(self.height, self.width)


Buckets = Mapping[str, Size]


def every_nth(num_frames: int, duration_s: float, fps: int) -> int:
    """Return n such that every n-th frame of a clip gives about `fps` frames a second.

    `duration_s` is the time from the first to the last frame. As in LongCat-Video n is a whole number, so
    that motion stays even, and at least 1.
    """
    return max(1, round((num_frames - 1) / duration_s / fps)) if duration_s > 0 else 1


def frames_at_rate(times_s: Sequence[float], fps: int) -> list[int]:
    """Return which frames of a clip are shown at `fps` moments a second, up to its last frame.

    `times_s` tells since when each frame is shown, in ascending order. A frame that is shown for longer than
    a moment is returned several times.
    """
    num_frames = math.floor((times_s[-1] - times_s[0] + _TIME_ERROR_S) * fps) + 1
    moments = (times_s[-1] - index / fps for index in reversed(range(num_frames)))
    shown = (bisect_right(times_s, moment + _TIME_ERROR_S) - 1 for moment in moments)
    return [max(0, index) for index in shown]  # a moment may be rounded to one before the first frame


def nearest_bucket(buckets: Buckets, height: int, width: int) -> Size:
    """Return the size whose ratio in the table is nearest to height/width; the first of equally near ones."""
    return buckets[min(buckets, key=lambda ratio: abs(float(ratio) - height / width))]


def latent_frames(num_frames: int) -> int:
    """Return the number of latent frames: one for the first frame, then one for every four frames."""
    return (num_frames - 1) // FRAME_STRIDE + 1


def frames_of_latents(num_latent_frames: int) -> int:
    """Return the number of frames that latent frames decode to."""
    return 1 + FRAME_STRIDE * (num_latent_frames - 1)


def latents_at_a_time(channels: int, rows: int, columns: int) -> int:
    """Return how many latent frames of this size are encoded or decoded without a tensor above MAX_ELEMENTS.

    The largest tensor is one of decoding. It has the `channels` of the last upsampling, twice those of
    full-size frames, and the rows and columns of pixels with a halo. At least one latent frame is a chunk.
    """
    num_pixels = (VAE_STRIDE * rows + 2) * (VAE_STRIDE * columns + 2)
    count = LATENTS_AT_A_TIME
    while count > 1 and count * FRAME_STRIDE * channels * num_pixels > MAX_ELEMENTS:
        count //= 2
    return count


def windows(first: int, count: int) -> list[slice]:
    """Return, for each decoded chunk, the slice of its frames that are among `count` frames from `first`.

    The VAE decodes one frame and then four at a time. A slice may be empty. The list ends with the last chunk
    that is needed.
    """
    end = first + count
    starts = [0, *range(1, end, FRAME_STRIDE)]
    sizes = [1] + [FRAME_STRIDE] * (len(starts) - 1)
    return [
        slice(min(max(first - start, 0), size), min(end - start, size))
        for start, size in zip(starts, sizes, strict=True)
    ]


@dataclass(frozen=True)
class RefineLayout:
    """The frames and latent frames of a refinement.

    Attributes:
        num_frames: frames of the result.
        num_held: frames at its start that are held to a condition.
        condition_latents: clean latent frames.
        front_padding: copies of the first frame before the clip.
        noise_latents: latent frames that are denoised.
    """

    num_frames: int
    num_held: int
    condition_latents: int
    front_padding: int
    noise_latents: int

    @property
    def padded_frames(self) -> int:
        """Return the number of frames that the VAE encodes."""
        if not self.num_held:
            return FRAME_STRIDE * self.noise_latents
        return frames_of_latents(self.condition_latents) + FRAME_STRIDE * self.noise_latents

    @property
    def latent_frames(self) -> int:
        """Return the number of latent frames of the transformer."""
        return self.condition_latents + self.noise_latents


def refine_layout(num_frames: int, num_held: int) -> RefineLayout:
    """Lay out a refinement to `num_frames` frames, the first `num_held` of them held to a condition."""
    condition = front = 0
    if num_held:
        condition = _whole_bricks(1 + math.ceil((num_held - 1) / FRAME_STRIDE))
        front = frames_of_latents(condition) - num_held
    noise = _whole_bricks(math.ceil((num_frames - num_held) / FRAME_STRIDE))
    if not num_held and frames_of_latents(noise) < num_frames:
        noise += BRICK_FRAMES  # n latent frames encode 4n frames, but decode to 4n − 3
    return RefineLayout(num_frames, num_held, condition, front, noise)


def _whole_bricks(num_latent_frames: int) -> int:
    return math.ceil(num_latent_frames / BRICK_FRAMES) * BRICK_FRAMES
