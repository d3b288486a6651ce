"""Cut a grid of tokens into bricks, and select the key bricks that each query brick attends to.

This is the selection of LongCat-Video's block-sparse attention: each query brick keeps the key bricks whose
mean key scores highest against its mean query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.transformer.config import Triple

# Along each axis the grid is split into bricks (bf, bh, bw) of tokens (cf, ch, cw).
GRID_ORDER = "(bf cf bh ch bw cw)"
BRICK_ORDER = "(bf bh bw cf ch cw)"


class Region(NamedTuple):
    """A run of query bricks that selects among the first `num_keys` key bricks, at least `min_kept` each."""

    queries: slice
    num_keys: int
    min_kept: int


@dataclass(frozen=True)
class Bricks:
    """The division of a token grid into bricks, and the number of key bricks that a query brick keeps.

    At least one of `sparsity` and `cdf_threshold` is given. If both are, the larger number of bricks is kept.

    Attributes:
        grid: frames, rows and columns in tokens.
        chunk_q: size of a query brick: frames, rows and columns in tokens.
        chunk_k: size of a key brick.
        num_condition_frames: the first frames of the grid are clean; their queries select only among them.
        local_bricks: number of the query bricks in each layer of bricks along the frames that this rank has;
            None for all of them.
        sparsity: fraction of the key bricks that is dropped.
        cdf_threshold: probability that the kept key bricks may have together.
    """

    grid: Triple
    chunk_q: Triple
    chunk_k: Triple
    num_condition_frames: int = 0
    sparsity: float | None = None
    cdf_threshold: float | None = None
    local_bricks: int | None = None

    def __post_init__(self) -> None:
        for chunk in (self.chunk_q, self.chunk_k):
            assert all(side % part == 0 for side, part in zip(self.grid, chunk, strict=True))
            assert self.num_condition_frames % chunk[0] == 0
        assert self.num_condition_frames <= self.grid[0]
        assert self.sparsity is not None or self.cdf_threshold is not None

    def to_key_order(self, x: Float[Tensor, "b a n d"]) -> Float[Tensor, "b a n d"]:
        """Reorder tokens from query-brick order to key-brick order."""
        if self.chunk_q == self.chunk_k:
            return x
        return to_bricks(_to_grid(x, self.grid, self.chunk_q), self.grid, self.chunk_k)

    def regions(self) -> Iterator[Region]:
        """Yield the region of the condition queries, if any, then that of the noise queries, if any."""
        cut = self._num_queries(self.num_condition_frames)
        end = self._num_queries(self.grid[0])
        if cut > 0:
            yield self._region(slice(0, cut), self.num_condition_frames)
        if cut < end:
            yield self._region(slice(cut, end), self.grid[0])

    def _region(self, queries: slice, frames: int) -> Region:
        num_keys = frames * prod(self.grid[1:]) // prod(self.chunk_k)
        min_kept = 0 if self.sparsity is None else int((1 - self.sparsity) * num_keys)
        return Region(queries, num_keys, max(min_kept, 1))

    def _num_queries(self, frames: int) -> int:
        local = (
            prod(self.grid[1:]) // prod(self.chunk_q[1:]) if self.local_bricks is None else self.local_bricks
        )
        return frames // self.chunk_q[0] * local


class Selection(NamedTuple):
    """Indices of key bricks for each query brick, best first. The first `counts` are kept (None: all).

    Of key bricks with equal scores, the one that comes first among all is better.
    """

    bricks: Int[Tensor, "*rest qb listed"]
    counts: Int[Tensor, "*rest qb"] | None

    def slice(self, start: int, stop: int) -> Selection:
        """Return the selection of some of the query bricks."""
        counts = None if self.counts is None else self.counts[..., start:stop]
        return Selection(self.bricks[..., start:stop, :], counts)

    def kept_mask(self) -> Bool[Tensor, "*rest qb listed"] | None:
        """Return True for each listed brick that is kept, or None if all are."""
        if self.counts is None:
            return None
        return torch.arange(self.bricks.shape[-1], device=self.bricks.device) < self.counts[..., None]


def mean_pool(x: Float[Tensor, "b a n d"], chunk: Triple) -> Float[Tensor, "b a bricks d"]:
    """Return the mean of each brick, in fp32 at least."""
    return torch.unflatten(x, 2, (-1, prod(chunk))).mean(3, dtype=torch.promote_types(x.dtype, torch.float32))


def select_bricks(
    pooled_q: Float[Tensor, "*rest qb d"],
    pooled_k: Float[Tensor, "*rest kb d"],
    region: Region,
    bricks: Bricks,
) -> Selection:
    """Select the key bricks that each query brick of a region keeps."""
    best = (pooled_q @ pooled_k.mT).sort(descending=True, stable=True)
    if bricks.cdf_threshold is None:
        return Selection(best.indices[..., : region.min_kept], None)
    return Selection(best.indices, _count_probable(best.values, pooled_q.shape[-1], region, bricks))


def count_kept(
    scores: Float[Tensor, "*rest qb kb"], head_dim: int, bricks: Bricks
) -> Int[Tensor, "*rest qb"]:
    """Return how many key bricks each query brick of all regions keeps, given its scores."""
    counts = scores.new_empty(scores.shape[:-1], dtype=torch.int32)
    for region in bricks.regions():
        counts[..., region.queries] = region.min_kept
        if bricks.cdf_threshold is not None:
            best = scores[..., region.queries, : region.num_keys].sort(descending=True).values
            counts[..., region.queries] = _count_probable(best, head_dim, region, bricks).int()
    return counts


def _count_probable(
    best: Float[Tensor, "*rest qb kb"], head_dim: int, region: Region, bricks: Bricks
) -> Int[Tensor, "*rest qb"]:
    """Return how many key bricks the threshold keeps of those with these scores, in descending order.

    They are kept while their cumulative probability does not exceed it; the brick that crosses the threshold
    is dropped.
    """
    probabilities = (best / head_dim**0.5).softmax(-1)
    below: Tensor = (probabilities.cumsum(-1) <= bricks.cdf_threshold).sum(-1)
    return below.clamp(min=region.min_kept)


def to_bricks(x: Tensor, grid: Triple, chunk: Triple) -> Tensor:
    """Reorder tokens [..., n, d] from (f, h, w) order to brick order: each brick is one run of tokens."""
    return rearrange(x, f"... {GRID_ORDER} d -> ... {BRICK_ORDER} d", **_sizes(grid, chunk))


def _to_grid(x: Tensor, grid: Triple, chunk: Triple) -> Tensor:
    """Reorder tokens [..., n, d] from brick order to (f, h, w) order."""
    return rearrange(x, f"... {BRICK_ORDER} d -> ... {GRID_ORDER} d", **_sizes(grid, chunk))


def _sizes(grid: Triple, chunk: Triple) -> dict[str, int]:
    """Return the sizes of the axes in GRID_ORDER and BRICK_ORDER."""
    num_bricks = [side // part for side, part in zip(grid, chunk, strict=True)]
    return dict(zip(("bf", "bh", "bw", "cf", "ch", "cw"), (*num_bricks, *chunk), strict=True))
