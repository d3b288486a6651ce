"""Frames as numbers: levels, sizes, lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.video_processor import VideoProcessor
from PIL import Image

from model.io.pixels import padded, resized, stretch_positions, stretched, to_floats, to_uint8
from model.spec.geometry import Size


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_bytes_survive_becoming_floats():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(to_uint8(to_floats(levels)), levels)


def test_levels_are_cut_not_rounded():
    almost = torch.full((1, 1, 1, 3), 200.9 / 255)
    assert to_uint8(almost).flatten().tolist() == [200, 200, 200]


@pytest.mark.parametrize("size", [Size(32, 48), Size(16, 80), Size(50, 70)])
def test_a_users_frames_are_resized_as_the_published_code_does(size):
    frame = noise(1, 40, 60, 3)
    processor = VideoProcessor(vae_scale_factor=1)
    theirs = processor.preprocess(Image.fromarray(frame[0].numpy()), height=size.height, width=size.width)
    ours = to_floats(resized(frame, size)).movedim(-1, 1) * 2 - 1
    torch.testing.assert_close(ours, theirs)


def test_floats_stay_floats():
    frames = torch.rand(1, 2, 2, 3)
    assert to_floats(frames) is frames


def test_frames_of_the_right_size_are_left_alone():
    frames = noise(2, 32, 48, 3)
    assert resized(frames, Size(32, 48)) is frames


def test_stretching_keeps_corners_and_ends():
    frames = torch.rand(3, 8, 12, 3)
    longer = stretched(frames, Size(16, 20), stretch_positions(3, 6))
    assert longer.shape == (6, 16, 20, 3)
    for end in (0, -1):
        for row in (0, -1):
            for column in (0, -1):
                torch.testing.assert_close(longer[end, row, column], frames[end, row, column])


def test_stretching_is_linear_between_frames():
    frames = torch.stack([torch.full((4, 4, 3), float(level)) for level in (0, 1)])
    levels = stretched(frames, Size(4, 4), stretch_positions(2, 5))[:, 0, 0, 0]
    assert levels.tolist() == pytest.approx(np.linspace(0, 1, 5).tolist())


def test_stretching_to_the_same_size_changes_nothing():
    frames = torch.rand(3, 8, 12, 3)
    assert torch.equal(stretched(frames, Size(8, 12), stretch_positions(3, 3)), frames)


@pytest.mark.parametrize(
    ("num_frames", "length"),
    [(5, 10), (9, 9), (1, 1), (1, 4), (8, 3), (93, 186), (30, 90)],  # 29 / 89 · 89 is above 29 in fp32
)
@pytest.mark.parametrize("size", [Size(8, 12), Size(24, 20)])
def test_stretching_gives_the_bits_of_trilinear_interpolation(num_frames, length, size):
    frames = torch.rand(num_frames, 8, 12, 3)
    x = F.interpolate(frames.movedim(-1, 1), tuple(size), mode="bilinear", align_corners=True)
    x = F.interpolate(x.movedim(1, 0)[None], (length, *size), mode="trilinear", align_corners=True)
    assert torch.equal(stretched(frames, size, stretch_positions(num_frames, length)), x[0].movedim(0, -1))


def test_padding_repeats_the_ends():
    frames = torch.rand(3, 2, 2, 3)
    longer = padded(frames, front=2, back=1)
    assert len(longer) == 6
    assert torch.equal(longer[0], frames[0])
    assert torch.equal(longer[1:5], torch.cat([frames[:1], frames]))
    assert torch.equal(longer[5], frames[2])
