"""How pixels become latents, and which frames of a refined clip are held or padded. No torch.

Everything here follows from LongCat-Video's VAE (8×8 pixels to a latent, four frames to a latent frame
after the first) and from the bricks of four latent frames in which it refines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

VAE_STRIDE = 8  # pixels to a latent row or column
FRAME_STRIDE = 4  # frames to a latent frame, after the first, which stands alone
SIDE_MULTIPLE = 16  # VAE stride × patch size
BRICK_FRAMES = 4  # refinement rounds its latent frames up to whole bricks


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


class Clip(NamedTuple):
    """What is known of a video before it is read: pixels and frames."""

    height: int
    width: int
    num_frames: int


Buckets = Mapping[str, Size]


def every_nth(num_frames: int, duration_s: float, fps: int) -> int:
    """Of how many frames of a clip one is taken, counted from the last, so that it has about `fps` a second.

    `duration_s` is from its first frame to its last. Whole steps alone, as LongCat-Video's programs do it, so
    that motion stays even; a clip of fewer frames a second is taken as it is.
    """
    return max(1, round((num_frames - 1) / duration_s / fps)) if duration_s > 0 else 1


def frames_taken(num_frames: int, nth: int) -> int:
    """How many frames those are."""
    return (num_frames - 1) // nth + 1


def nearest_bucket(buckets: Buckets, height: int, width: int) -> Size:
    """The size whose ratio, as printed in the table, is nearest to height/width; the first on ties."""
    return buckets[min(buckets, key=lambda ratio: abs(float(ratio) - height / width))]


def latent_frames(num_frames: int) -> int:
    """Latent frames of so many frames: the first alone, then one for every four."""
    return (num_frames - 1) // FRAME_STRIDE + 1


def frames_of_latents(num_latent_frames: int) -> int:
    """Frames that so many latent frames decode to."""
    return 1 + FRAME_STRIDE * (num_latent_frames - 1)


def windows(first: int, count: int) -> list[slice]:
    """Which frames of each decoded chunk are among `count` from `first`, up to the last such chunk.

    The VAE decodes one frame and then four at a time. A window may be empty.
    """
    end = first + count
    starts = [0, *range(1, end, FRAME_STRIDE)] if end > 1 else [0]
    sizes = [1] + [FRAME_STRIDE] * (len(starts) - 1)
    return [
        slice(min(max(first - start, 0), size), min(end - start, size))
        for start, size in zip(starts, sizes, strict=True)
    ]


@dataclass(frozen=True)
class RefineFrames:
    """How the frames of one refined clip lie: held and padded in front, padded at the back.

    `num_frames` come out, the first `num_held` of them held to a condition.
    """

    num_frames: int
    num_held: int
    condition_latents: int
    front_padding: int
    noise_latents: int

    @property
    def padded_frames(self) -> int:
        """Length of the padded clip that the VAE is given."""
        if not self.num_held:
            return FRAME_STRIDE * self.noise_latents
        return frames_of_latents(self.condition_latents) + FRAME_STRIDE * self.noise_latents

    @property
    def latent_frames(self) -> int:
        """Latent frames that the transformer is given."""
        return self.condition_latents + self.noise_latents


def refine_frames(num_frames: int, num_held: int) -> RefineFrames:
    """Lay out a refinement of `num_frames` output frames, the first `num_held` of them held."""
    condition = front = 0
    if num_held:
        condition = _whole_bricks(1 + math.ceil((num_held - 1) / FRAME_STRIDE))
        front = frames_of_latents(condition) - num_held
    noise = _whole_bricks(math.ceil((num_frames - num_held) / FRAME_STRIDE))
    if not num_held and frames_of_latents(noise) < num_frames:
        noise += BRICK_FRAMES  # 4e frames give e latents, which stand for three frames less
    return RefineFrames(num_frames, num_held, condition, front, noise)


def _whole_bricks(num_latent_frames: int) -> int:
    return math.ceil(num_latent_frames / BRICK_FRAMES) * BRICK_FRAMES
