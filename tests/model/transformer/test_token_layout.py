"""Latents become tokens in chunks, and tokens latents again; each token has its position."""

from __future__ import annotations

import pytest
import torch

from model.parallel.mesh import SINGLE
from model.transformer.config import BrickConfig, DitConfig
from model.transformer.rope import rotation_3d
from model.transformer.token_layout import Window, build_layout

SMALL = DitConfig(
    hidden_size=32,
    depth=1,
    num_heads=2,
    bsa_params=BrickConfig(chunk_3d_shape_q=(2, 2, 3), chunk_3d_shape_k=(4, 2, 3)),
)
SHAPES = [
    (Window(3, 8, 12), False),
    (Window(1, 4, 4), True),
    (Window(4, 8, 12), True),
    (Window(8, 4, 6, num_condition=4), True),
]


@pytest.mark.parametrize(("window", "sparse"), SHAPES)
def test_unpatchify_reverses_patchify(window, sparse):
    layout = build_layout(SMALL, window, SINGLE, sparse=sparse)
    latents = torch.randn(2, 16, window.num_frames, window.height, window.width)
    patches = layout.patchify(latents)
    assert patches.shape == (2, layout.num_groups, layout.group_size, 64)
    channel_last = patches.unflatten(-1, (16, 4)).transpose(-1, -2).flatten(-2)
    assert torch.equal(layout.unpatchify(channel_last), latents)


@pytest.mark.parametrize(("window", "sparse"), SHAPES)
def test_each_token_has_the_rotation_of_its_position(window, sparse):
    """A latent whose values are its positions shows the position of each token."""
    layout = build_layout(SMALL, window, SINGLE, sparse=sparse)
    f, h, w = layout.grid
    positions = torch.arange(f * h * w).view(1, 1, f, h, w).float()
    latents = positions.repeat_interleave(2, -1).repeat_interleave(2, -2).expand(1, 16, -1, -1, -1)
    found = layout.patchify(latents)[0, :, :, 0].long()
    expected = rotation_3d(layout.grid, SMALL.head_dim).flatten(0, 2)[found]
    assert torch.equal(layout.rotation[:, :, 0], expected)


def test_dense_layout_has_a_group_for_each_frame():
    layout = build_layout(SMALL, Window(3, 8, 12), SINGLE, sparse=False)
    assert (layout.num_groups, layout.group_size, layout.chunk) == (3, 24, (1, 4, 6))
    assert layout.bricks is None


def test_tokens_of_a_brick_are_consecutive():
    layout = build_layout(SMALL, Window(4, 8, 12), SINGLE, sparse=True)
    assert (layout.num_groups, layout.group_size) == (2, 48)
    row = torch.arange(4).repeat_interleave(2).view(1, 1, 1, 8, 1).expand(1, 16, 4, 8, 12).float()
    rows = layout.patchify(row)[0, 0, :, 0].unflatten(0, (-1, 12))
    assert all(set(brick.tolist()) in ({0, 1}, {2, 3}) for brick in rows)


def test_block_sparse_attention_needs_more_than_one_latent_frame():
    assert build_layout(SMALL, Window(1, 8, 12), SINGLE, sparse=True).bricks is None


def test_grid_that_bricks_do_not_divide_fails_an_assertion():
    with pytest.raises(AssertionError):
        build_layout(SMALL, Window(4, 8, 10), SINGLE, sparse=True)


def test_condition_frames_are_counted_in_groups():
    layout = build_layout(SMALL, Window(8, 4, 6, num_condition=4), SINGLE, sparse=True)
    assert layout.num_condition_groups == 2
    assert layout.bricks is not None
    assert layout.bricks.num_condition_frames == 4
    dense = build_layout(SMALL, Window(8, 4, 6, num_condition=3), SINGLE, sparse=False)
    assert dense.num_condition_groups == 3


def test_each_group_has_one_timestep():
    layout = build_layout(SMALL, Window(4, 8, 12), SINGLE, sparse=True)
    assert layout.group_timesteps(torch.tensor([[0.0, 0.0, 7.0, 7.0]])).tolist() == [[0.0, 7.0]]
