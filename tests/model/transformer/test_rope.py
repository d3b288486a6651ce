"""Rotations have the angles of the definition, and keep lengths, distances and dtype."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.transformer.rope import rotate, rotation_3d


def one_angle(position: tuple[int, int, int], pair: int, head_dim: int) -> float:
    """The angle of one dimension pair, by the definition."""
    side = head_dim // 6 * 2
    for index, width in zip(position, (head_dim - 2 * side, side, side), strict=True):
        if pair < width // 2:
            return index * 10000 ** (-2 * pair / width)
        pair -= width // 2
    raise AssertionError


@pytest.mark.parametrize("head_dim", [8, 12, 16, 20, 128])
def test_angles_are_those_of_the_definition(head_dim):
    rotation = rotation_3d((3, 2, 4), head_dim)
    assert rotation.shape == (3, 2, 4, head_dim // 2, 2)
    for position in [(0, 0, 0), (2, 1, 3), (1, 0, 2), (0, 1, 0)]:
        for pair in range(head_dim // 2):
            angle = one_angle(position, pair, head_dim)
            expected = [math.cos(angle), math.sin(angle)]
            assert rotation[position][pair].tolist() == pytest.approx(expected, abs=1e-6)


def test_first_frame_shifts_the_positions():
    whole = rotation_3d((5, 2, 2), 16)
    assert torch.equal(rotation_3d((3, 2, 2), 16, first_frame=2), whole[2:])


def turned(x, angles):
    turn = torch.stack([angles.cos(), angles.sin()], -1).flatten(1, 2)[:, :, None]
    return rotate(x, turn)


@given(seed=st.integers(0, 100))
def test_rotation_keeps_lengths_and_depends_on_distance_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 1, 1, 1, 16, generator=generator) for _ in range(2))
    rotation = rotation_3d((4, 4, 4), 16)[:, :, :, None, None, None]

    def product(first, second):
        return (rotate(q, rotation[first]) * rotate(k, rotation[second])).sum().item()

    assert product((0, 1, 2), (1, 2, 3)) == pytest.approx(product((2, 0, 0), (3, 1, 1)), abs=1e-4)
    assert rotate(q, rotation[3, 2, 1]).norm().item() == pytest.approx(q.norm().item(), rel=1e-5)


def test_pairs_are_interleaved():
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    quarter = torch.full((1, 1, 1, 2), math.pi / 2)
    assert turned(x, quarter).flatten().tolist() == pytest.approx([0, 1, 0, 0], abs=1e-6)


def test_rotation_keeps_the_dtype():
    x = torch.randn(1, 1, 3, 2, 8).bfloat16()
    assert turned(x, torch.randn(1, 3, 1, 4)).dtype == torch.bfloat16
