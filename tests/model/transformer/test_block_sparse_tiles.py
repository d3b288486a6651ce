"""The tiles of the block-sparse kernel fit the shared memory of each architecture, by formula."""

from __future__ import annotations

import pytest

from model.transformer.block_sparse_tiles import Tiles, choose_tiles, shared_bytes
from tests.model.transformer.block_sparse_cases import SHARED_BYTES

HEAD_DIM = 128  # of the release


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("element_size", [2, 4])
def test_chosen_tiles_fit_every_architecture(element_size: int, capability: int) -> None:
    tiles = choose_tiles(element_size, HEAD_DIM, SHARED_BYTES[capability])
    assert shared_bytes(tiles, element_size, HEAD_DIM) <= SHARED_BYTES[capability]


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_released_bricks_in_bf16_are_one_tile_with_loads_ahead(capability: int) -> None:
    assert choose_tiles(2, HEAD_DIM, SHARED_BYTES[capability]) == Tiles(64, 8, 3)


def test_fp32_tiles_that_could_not_be_launched_exceed_the_limit() -> None:
    """With these tiles the kernel, compiled for sm_90, needed 172 KiB."""
    estimate = shared_bytes(Tiles(32, 8, 3), 4, HEAD_DIM)
    assert estimate == pytest.approx(172 << 10, rel=0.02)
    assert estimate > max(SHARED_BYTES[capability] for capability in (80, 86, 89))


def test_wider_heads_get_smaller_tiles() -> None:
    narrow, wide = (choose_tiles(2, head_dim, SHARED_BYTES[89]) for head_dim in (128, 256))
    assert shared_bytes(wide, 2, 256) <= SHARED_BYTES[89] < shared_bytes(narrow, 2, 256)
    assert wide.rows < narrow.rows


def test_interpreted_kernel_has_no_limit() -> None:
    assert choose_tiles(2, HEAD_DIM, None) == Tiles(64, 8, 3)
