"""Choose the tiles of the block-sparse kernel so that they fit the shared memory of a GPU.

Nothing here needs Triton or a GPU.
"""

from typing import NamedTuple

KIB = 1024
MARGIN = 1.03  # an fp32 kernel that was compiled for sm_90 needed 172 KiB where the formula gives 168
FULL_PRECISION_BYTES = 4


class Tiles(NamedTuple):
    """Rows of a tile of keys, and of each query brick of a pair; warps of a program; stages of its loads."""

    rows: int
    num_warps: int
    num_stages: int


HALF_PRECISION = (Tiles(64, 8, 3), Tiles(64, 8, 2), Tiles(32, 4, 2), Tiles(16, 4, 2))
FULL_PRECISION = (Tiles(16, 4, 2), Tiles(16, 4, 1))  # with 32 rows, 7 KB a thread spill on sm_90
"""What to try, the fastest first, for elements of at most two and of four bytes."""


def choose_tiles(element_size: int, head_dim: int, limit_bytes: int | None) -> Tiles:
    """Return the first tiles that fit `limit_bytes` of shared memory, or the smallest (None: no limit)."""
    tiles = FULL_PRECISION if element_size >= FULL_PRECISION_BYTES else HALF_PRECISION
    for candidate in tiles:
        if limit_bytes is None or shared_bytes(candidate, element_size, head_dim) <= limit_bytes:
            return candidate
    return tiles[-1]


def choose_warps(columns: int) -> int:
    """Return the warps of a program that holds two rows of scores: 32 scores for each thread, if possible."""
    return min(max(columns // 512, 4), 16)


def shared_bytes(tiles: Tiles, element_size: int, head_dim: int) -> int:
    """Estimate the shared memory of a program: queries, and the keys and values that are fetched ahead.

    In fp32 the products do not use tensor cores, and each of their operands has another copy.
    """
    queries = 2 * tiles.rows * head_dim * element_size
    keys_and_values = 2 * tiles.rows * head_dim * element_size
    estimate = queries + max(tiles.num_stages - 1, 1) * keys_and_values
    if element_size >= FULL_PRECISION_BYTES:
        probabilities = 2 * tiles.rows * tiles.rows * element_size
        estimate += queries + keys_and_values + probabilities
    return int(MARGIN * estimate)
