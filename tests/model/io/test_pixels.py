"""Frames as numbers: levels, sizes, lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from PIL import Image

from model.io.pixels import padded, resized, stretched, to_floats, to_uint8
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


def test_frames_of_the_right_size_are_left_alone():
    frames = noise(2, 32, 48, 3)
    assert resized(frames, Size(32, 48)) is frames


def test_stretching_keeps_corners_and_ends():
    frames = torch.rand(3, 8, 12, 3)
    longer = stretched(frames, Size(16, 20), 6)
    assert longer.shape == (6, 16, 20, 3)
    for end in (0, -1):
        for row in (0, -1):
            for column in (0, -1):
                torch.testing.assert_close(longer[end, row, column], frames[end, row, column])


def test_stretching_is_linear_between_frames():
    frames = torch.stack([torch.full((4, 4, 3), float(level)) for level in (0, 1)])
    levels = stretched(frames, Size(4, 4), 5)[:, 0, 0, 0]
    assert levels.tolist() == pytest.approx(np.linspace(0, 1, 5).tolist())


def test_stretching_to_the_same_size_changes_nothing():
    frames = torch.rand(3, 8, 12, 3)
    torch.testing.assert_close(stretched(frames, Size(8, 12), 3), frames)


def test_padding_repeats_the_ends():
    frames = torch.rand(3, 2, 2, 3)
    longer = padded(frames, front=2, back=1)
    assert len(longer) == 6
    assert torch.equal(longer[0], frames[0])
    assert torch.equal(longer[1:5], torch.cat([frames[:1], frames]))
    assert torch.equal(longer[5], frames[2])
