"""Bricks of tokens, and which key bricks each query brick keeps in LongCat-Video's block-sparse attention.

The (f, h, w) grid of tokens is cut into bricks; each query brick keeps the key bricks whose mean key scores
highest against its mean query. `model.tokens` says how the grid is cut; `model.block_sparse` and, on CUDA,
`model.block_sparse_triton` attend within what `choose` kept. It does not know of layers or devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BRICK_AXES = (0, 2, 4, 1, 3, 5)  # (F, cf, H, ch, W, cw) → (F, H, W, cf, ch, cw)
GRID_AXES = (0, 3, 1, 4, 2, 5)  # the way back

Triple = tuple[int, int, int]


class Region(NamedTuple):
    """The first key bricks that a run of query bricks chooses among, and how many each keeps at least."""

    queries: slice
    num_keys: int
    least: int


@dataclass(frozen=True)
class Bricks:
    """How a grid of tokens is cut into bricks, and how many key bricks a query brick keeps.

    `grid`, `chunk_q` and `chunk_k` are (f, h, w) in tokens. The first `num_condition_frames` of the
    grid are clean: their queries see only each other's bricks. At least one of `sparsity` (the share
    of key bricks that is left out) and `cdf_threshold` (the probability that the kept ones may hold
    together) is given; where both are, the larger number of bricks is kept.
    """

    grid: Triple
    chunk_q: Triple
    chunk_k: Triple
    num_condition_frames: int = 0
    sparsity: float | None = None
    cdf_threshold: float | None = None

    def __post_init__(self) -> None:
        for chunk in (self.chunk_q, self.chunk_k):
            assert all(side % part == 0 for side, part in zip(self.grid, chunk, strict=True))
            assert self.num_condition_frames % chunk[0] == 0
        assert self.num_condition_frames <= self.grid[0]
        assert self.sparsity is not None or self.cdf_threshold is not None

    def in_key_order(self, x: Float[Tensor, "b a n d"]) -> Float[Tensor, "b a n d"]:
        """Tokens in key-brick order, from query-brick order."""
        if self.chunk_q == self.chunk_k:
            return x
        return to_bricks(_to_grid(x, self.grid, self.chunk_q), self.grid, self.chunk_k)

    def regions(self) -> Iterator[Region]:
        """The condition queries, if any, then the noise queries, if any."""
        cut = self._num_bricks(self.chunk_q, self.num_condition_frames)
        end = self._num_bricks(self.chunk_q, self.grid[0])
        if cut > 0:
            yield self._region(slice(0, cut), self.num_condition_frames)
        if cut < end:
            yield self._region(slice(cut, end), self.grid[0])

    def _region(self, queries: slice, frames: int) -> Region:
        num_keys = self._num_bricks(self.chunk_k, frames)
        least = 0 if self.sparsity is None else int((1 - self.sparsity) * num_keys)
        return Region(queries, num_keys, max(least, 1))

    def _num_bricks(self, chunk: Triple, frames: int) -> int:
        return frames * prod(self.grid[1:]) // prod(chunk)


class Chosen(NamedTuple):
    """Key bricks of each query brick, best first; `counts` of them are kept (None: every one listed)."""

    bricks: Int[Tensor, "*batch q s"]
    counts: Int[Tensor, "*batch q"] | None

    def part(self, start: int, stop: int) -> Chosen:
        """The same of some query bricks."""
        counts = None if self.counts is None else self.counts[..., start:stop]
        return Chosen(self.bricks[..., start:stop, :], counts)

    def kept(self) -> Bool[Tensor, "*batch q s"] | None:
        """Which of the listed bricks are kept; None: every one."""
        if self.counts is None:
            return None
        return torch.arange(self.bricks.shape[-1], device=self.bricks.device) < self.counts[..., None]


def pool(x: Float[Tensor, "b a n d"], chunk: Triple) -> Float[Tensor, "b a s d"]:
    """The mean of each brick, in fp32."""
    return torch.unflatten(x, 2, (-1, prod(chunk))).mean(3, dtype=torch.promote_types(x.dtype, torch.float32))


def choose(
    pooled_q: Float[Tensor, "*batch q d"],
    pooled_k: Float[Tensor, "*batch s d"],
    region: Region,
    bricks: Bricks,
) -> Chosen:
    """The key bricks that each query brick of a region keeps.

    The threshold counts the cumulative probabilities, largest first, that do not pass it: the brick
    that crosses it is left out.
    """
    scores = pooled_q @ pooled_k.mT
    if bricks.cdf_threshold is None:
        return Chosen(scores.topk(region.least).indices, None)
    best = scores.sort(descending=True)
    probabilities = (best.values / pooled_q.shape[-1] ** 0.5).softmax(-1)
    below = (probabilities.cumsum(-1) <= bricks.cdf_threshold).sum(-1)
    return Chosen(best.indices, below.clamp(min=region.least))


def to_bricks(x: Tensor, grid: Triple, chunk: Triple) -> Tensor:
    """[..., n, d]: from (f, h, w) order to brick order, where each brick is one run of tokens."""
    cut = [size for side, part in zip(grid, chunk, strict=True) for size in (side // part, part)]
    return _permuted(x, cut, BRICK_AXES)


def _to_grid(x: Tensor, grid: Triple, chunk: Triple) -> Tensor:
    """[..., n, d]: from brick order to (f, h, w) order."""
    cut = [side // part for side, part in zip(grid, chunk, strict=True)]
    return _permuted(x, [*cut, *chunk], GRID_AXES)


def _permuted(x: Tensor, sizes: list[int], axes: tuple[int, ...]) -> Tensor:
    lead = x.ndim - 2
    cut = torch.unflatten(x, -2, sizes)
    order = [*range(lead), *(lead + axis for axis in axes), cut.ndim - 1]
    return cut.permute(order).flatten(lead, -2)
