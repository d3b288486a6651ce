"""Compute block-sparse attention on CUDA in two Triton kernels: one lists key bricks, the other attends.

With one brick of 64 tokens a program would wait for key tiles, so a program handles two neighbouring query
bricks (128 rows) and the union of their key bricks. Where only one of the two keeps a key brick, the other's
rows are masked.
"""

# Triton's kernels take arguments without types, and Triton is not installed where this file is checked.
# ruff: noqa: ANN001, ANN202, PLR0913, PLR0917
# mypy: disable-error-code="untyped-decorator,no-untyped-def,import-not-found"

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from model.transformer.block_sparse_bricks import Bricks, count_kept, mean_pool
from model.transformer.block_sparse_tiles import choose_tiles, choose_warps

SCORED_ELEMENTS = 1 << 25  # limit on the scores of bricks that are held at a time
NARROWEST_TILE = 16  # the minimum of tl.dot


class Pairs(NamedTuple):
    """For each pair of neighbouring query bricks, the key bricks that either of them keeps.

    An entry is 4 · (index of the key brick) + 1 if the first keeps it + 2 if the second does. The first
    `lengths` entries are written, in ascending order.
    """

    entries: Int[Tensor, "ba pairs listed"]
    lengths: Int[Tensor, "ba pairs"]


def attend(
    q: Float[Tensor, "b a n d"], k: Float[Tensor, "b a s d"], v: Float[Tensor, "b a s d"], bricks: Bricks
) -> Float[Tensor, "b a n d"]:
    """Compute what `reference_attention` defines. k and v are in key-brick order, q in query-brick order."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty_like(q)
    tokens_q, tokens_k = math.prod(bricks.chunk_q), math.prod(bricks.chunk_k)
    tiles = choose_tiles(q.element_size(), _tile(q.shape[3], q.shape[3]), _shared_memory_bytes(q.device))
    tile_q, tile_k = _tile(tokens_q, tiles.rows), _tile(tokens_k, tiles.rows)
    pairs = pair_up(
        mean_pool(q, bricks.chunk_q).flatten(0, 1), mean_pool(k, bricks.chunk_k).flatten(0, 1), bricks
    )
    heads, num_pairs, width = pairs.entries.shape
    _attend_pairs[num_pairs * triton.cdiv(tokens_q, tile_q), heads](
        q, k, v, out, *pairs,
        q.stride()[:3], k.stride()[:3], v.stride()[:3], out.stride()[:3],
        q.shape[1], q.shape[2] // tokens_q, width, math.log2(math.e) / math.sqrt(q.shape[3]),
        tokens_q, tokens_k, q.shape[3], tile_q, tile_k, _tile(q.shape[3], q.shape[3]),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return out


def _shared_memory_bytes(device: torch.device) -> int | None:
    """Return how much shared memory a program can have; None on a CPU, where the kernel is interpreted."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def _tile(size: int, widest: int) -> int:
    """Return the rows of a tile: a power of two of at most `widest`, but at least the minimum of tl.dot."""
    fitting: int = triton.next_power_of_2(min(size, widest))
    return max(NARROWEST_TILE, fitting)


def pair_up(pooled_q: Float[Tensor, "ba qb d"], pooled_k: Float[Tensor, "ba kb d"], bricks: Bricks) -> Pairs:
    """Select key bricks and merge the selections of neighbours, a few heads at a time to limit memory."""
    heads, num_queries, num_keys = *pooled_q.shape[:2], pooled_k.shape[1]
    num_pairs, regions = triton.cdiv(num_queries, 2), list(bricks.regions())
    most = num_keys if bricks.cdf_threshold is not None else max(region.min_kept for region in regions)
    width = min(2 * most, num_keys)
    pairs = Pairs(
        entries=pooled_q.new_empty(heads, num_pairs, width, dtype=torch.int32),
        lengths=pooled_q.new_empty(heads, num_pairs, dtype=torch.int32),
    )
    columns = triton.next_power_of_2(num_keys)
    step = max(1, SCORED_ELEMENTS // (num_queries * num_keys))
    for first in range(0, heads, step):
        here = slice(first, first + step)
        scores = pooled_q[here] @ pooled_k[here].mT
        _list_pairs[num_pairs, len(scores)](
            scores, count_kept(scores, pooled_q.shape[2], bricks), pairs.entries[here], pairs.lengths[here],
            num_queries, num_keys, regions[0].queries.stop, regions[0].num_keys, width, columns,
            num_warps=choose_warps(columns),
        )  # fmt: skip
    return pairs


@triton.jit
def _list_pairs(
    scores, counts, entries, lengths,
    num_queries, num_keys, first_queries, first_keys,  # the first region's, or those of all
    width, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Keep the best key bricks of both query bricks of a pair, and list those that either keeps."""
    LEAST: tl.constexpr = -(1 << 31)
    pair, head = tl.program_id(0), tl.program_id(1)
    which, key = tl.arange(0, 2), tl.arange(0, COLUMNS)
    brick = 2 * pair + which
    row = head.to(tl.int64) * num_queries + brick
    limit = tl.where(brick < first_queries, first_keys, num_keys)
    within = (brick < num_queries)[:, None] & (key[None, :] < limit[:, None])
    score = tl.load(scores + row[:, None] * num_keys + key[None, :], mask=within, other=0.0)
    count = tl.load(counts + row, mask=brick < num_queries, other=0)

    # Integers in the order of the scores: of negative floats, the bits after the sign are inverted.
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # -0.0 equals 0.0
    order = tl.where(within, bits ^ ((bits >> 31) & 0x7FFFFFFF), LEAST)
    # The last that is kept: the largest integer that `count` of them reach, from its highest bit down.
    last = tl.where(tl.sum((order >= 0).to(tl.int32), 1) >= count, 0, LEAST)
    for bit in range(31):
        higher = last + (1 << (30 - bit))
        reached = tl.sum((order >= higher[:, None]).to(tl.int32), 1)
        last = tl.where(reached >= count, higher, last)
    better = order > last[:, None]
    equal = within & (order == last[:, None])
    remaining = count - tl.sum(better.to(tl.int32), 1)
    kept = better | (equal & (tl.cumsum(equal.to(tl.int32), 1) <= remaining[:, None]))

    keepers = tl.sum(kept.to(tl.int32) << which[:, None], 0)
    listed = keepers > 0
    place = tl.cumsum(listed.to(tl.int32), 0) - 1
    pair_of_all = head.to(tl.int64) * tl.num_programs(0) + pair
    tl.store(entries + pair_of_all * width + place, 4 * key + keepers, mask=listed)
    tl.store(lengths + pair_of_all, tl.sum(listed.to(tl.int32), 0))


@triton.jit
def _load_rows(start, rows, real, dim, D: tl.constexpr):
    """Load a tile of whole rows, with zeros where `real` is False."""
    return tl.load(start + rows + dim[None, :], mask=real & (dim < D)[None, :], other=0.0)


@triton.jit
def _attend_pairs(
    q, k, v, out, entries, lengths,
    q_strides, k_strides, v_strides, out_strides,
    num_heads, num_query_bricks, width,
    scale,  # log2(e) / √d: exp2 is cheaper than exp
    TOKENS_Q: tl.constexpr, TOKENS_K: tl.constexpr, D: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """Attend from a tile of two query bricks (the same rows of each) to all key bricks that either keeps."""
    tiles: tl.constexpr = (TOKENS_Q + TILE_Q - 1) // TILE_Q
    pair, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    head = tl.program_id(1)
    num_pairs = (num_query_bricks + 1) // 2
    b, a = (head // num_heads).to(tl.int64), (head % num_heads).to(tl.int64)

    row = tl.arange(0, 2 * TILE_Q)
    which, token = row // TILE_Q, tile * TILE_Q + row % TILE_Q
    brick = 2 * pair + which
    real = ((token < TOKENS_Q) & (brick < num_query_bricks))[:, None]
    dim = tl.arange(0, TILE_D)
    rows = (brick.to(tl.int64) * TOKENS_Q + token)[:, None]
    tile_q = _load_rows(q + b * q_strides[0] + a * q_strides[1], rows * q_strides[2], real, dim, D)
    k += b * k_strides[0] + a * k_strides[1]
    v += b * v_strides[0] + a * v_strides[1]
    entries += (head * num_pairs + pair).to(tl.int64) * width

    best = tl.full([2 * TILE_Q], -1e30, tl.float32)  # finite, so that exp2 of a row without keys is not NaN
    total = tl.zeros([2 * TILE_Q], tl.float32)
    sums = tl.zeros([2 * TILE_Q, TILE_D], tl.float32)
    for i in range(tl.load(lengths + head * num_pairs + pair)):
        entry = tl.load(entries + i)
        keeps = ((entry >> which) & 1) == 1
        for start in tl.static_range(0, TOKENS_K, TILE_K):
            column = start + tl.arange(0, TILE_K)
            within = column < TOKENS_K
            columns = (entry >> 2).to(tl.int64) * TOKENS_K + column
            tile_k = tl.load(
                k + columns[None, :] * k_strides[2] + dim[:, None],
                mask=within[None, :] & (dim < D)[:, None],
                other=0.0,
            )
            tile_v = _load_rows(v, columns[:, None] * v_strides[2], within[:, None], dim, D)
            scores = tl.dot(tile_q, tile_k, input_precision="ieee") * scale
            scores = tl.where(keeps[:, None] & within[None, :], scores, float("-inf"))
            new_best = tl.maximum(best, tl.max(scores, 1))
            powers = tl.exp2(scores - new_best[:, None])
            fade = tl.exp2(best - new_best)
            total = total * fade + tl.sum(powers, 1)
            update = tl.dot(powers.to(tile_v.dtype), tile_v, input_precision="ieee")
            sums = sums * fade[:, None] + update
            best = new_best
    tl.store(
        out + b * out_strides[0] + a * out_strides[1] + rows * out_strides[2] + dim[None, :],
        (sums / tl.maximum(total, 1e-30)[:, None]).to(out.dtype.element_ty),
        mask=real & (dim < D)[None, :],
    )
