"""Block-sparse attention against the loops of `plain`, and the rules of how many bricks are kept."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.transformer import block_sparse
from model.transformer.block_sparse import block_sparse_attention, reference_attention
from model.transformer.block_sparse_bricks import (
    Bricks,
    Region,
    Selection,
    count_kept,
    mean_pool,
    select_bricks,
    to_bricks,
)
from tests.model.plain.attention import PlainBricks, attend_in_bricks
from tests.model.transformer.block_sparse_cases import QKV, changed

SIDES = st.sampled_from([1, 2, 4])
TRIPLES = st.tuples(SIDES, SIDES, SIDES)
CUBES = Bricks((4, 4, 4), (2, 2, 2), (2, 2, 2), sparsity=0.5)


def random_tokens(bricks: Bricks, *, heads: int = 2, head_dim: int = 8, seed: int = 0) -> QKV:
    """q, k, v in (f, h, w) order."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, heads, prod(bricks.grid), head_dim)
    q, k, v = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    return q, k, v


def order(bricks: Bricks) -> Tensor:
    """Where each token of the query-brick order stands in the (f, h, w) order."""
    return to_bricks(torch.arange(prod(bricks.grid))[:, None], bricks.grid, bricks.chunk_q).flatten()


def sparse(q: Tensor, k: Tensor, v: Tensor, bricks: Bricks) -> Tensor:
    """From and to (f, h, w) order, as the transformer would do it."""
    places = order(bricks)
    out = torch.empty_like(q)
    out[:, :, places] = block_sparse_attention(q[:, :, places], k[:, :, places], v[:, :, places], bricks)
    return out


def plainly(q: Tensor, k: Tensor, v: Tensor, bricks: Bricks) -> Tensor:
    """The same by loops."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in bricks.grid))
    rules = PlainBricks(bricks.chunk_q, bricks.chunk_k, bricks.sparsity, bricks.cdf_threshold)
    condition = bricks.num_condition_frames
    heads = [
        attend_in_bricks(*one, places, condition, rules)
        for sample in zip(q, k, v, strict=True)
        for one in zip(*sample, strict=True)
    ]
    return torch.stack(heads).view_as(q)


@st.composite
def any_bricks(draw: st.DrawFn) -> Bricks:
    """Small grids, with chunks of any size that divide them."""
    chunk_q, chunk_k = draw(TRIPLES), draw(TRIPLES)
    whole = [max(pair) for pair in zip(chunk_q, chunk_k, strict=True)]
    grid: Any = tuple(side * draw(st.integers(1, 2)) for side in whole)
    assume(prod(grid) ** 2 / prod(chunk_q) / prod(chunk_k) <= 600)  # the loops are slow
    conditions = [frames for frames in range(grid[0] + 1) if frames % whole[0] == 0]
    sparsity = draw(st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9375, 1.0]))
    threshold = st.sampled_from([0.0, 0.3, 0.5, 0.9])
    return Bricks(
        grid=grid,
        chunk_q=chunk_q,
        chunk_k=chunk_k,
        num_condition_frames=draw(st.sampled_from(conditions)),
        sparsity=sparsity,
        cdf_threshold=draw(threshold if sparsity is None else st.none() | threshold),
    )


@settings(max_examples=40, derandomize=True)
@given(bricks=any_bricks(), seed=st.integers(0, 1000))
def test_any_bricks_attend_as_the_loops_do(bricks: Bricks, seed: int) -> None:
    tokens = random_tokens(bricks, seed=seed)
    torch.testing.assert_close(sparse(*tokens, bricks=bricks), plainly(*tokens, bricks=bricks))


def test_keeping_every_brick_is_dense_attention() -> None:
    bricks = replace(CUBES, sparsity=0.0)
    q, k, v = random_tokens(bricks)
    torch.testing.assert_close(sparse(q, k, v, bricks), F.scaled_dot_product_attention(q, k, v))


def test_condition_queries_do_not_see_noise_bricks() -> None:
    bricks = Bricks((4, 4, 4), (2, 2, 2), (2, 2, 2), num_condition_frames=2, sparsity=0.0)
    q, k, v = random_tokens(bricks)
    before = sparse(q, k, v, bricks)
    v[:, :, 32:] += 1
    k[:, :, 32:] *= 2
    after = sparse(q, k, v, bricks)
    assert torch.equal(before[:, :, :32], after[:, :, :32])
    assert not torch.isclose(before[:, :, 32:], after[:, :, 32:]).any()


def test_bricks_that_are_not_kept_change_nothing() -> None:
    bricks = replace(CUBES, sparsity=1.0)  # one brick is always kept
    q, k, v = random_tokens(bricks)
    k[:, :, order(bricks)[:8]] += 100 * q.mean(2, keepdim=True).sign()
    seen = sparse(q, k, v, bricks)
    v[:, :, order(bricks)[8:]] = torch.nan
    kept = ~sparse(q, k, v, bricks).isnan()
    assert kept.any()
    assert torch.equal(sparse(q, k, v, bricks)[kept], seen[kept])


def test_the_order_lists_each_brick_in_one_run() -> None:
    bricks = Bricks((2, 4, 4), (1, 2, 2), (1, 2, 2), sparsity=0.5)
    places = order(bricks)
    assert places[:8].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert places.sort().values.tolist() == list(range(32))


def test_key_order_differs_only_where_the_chunks_do() -> None:
    tokens = torch.arange(32.0)[None, None, :, None]
    same = Bricks((2, 4, 4), (1, 2, 2), (1, 2, 2), sparsity=0.5)
    assert same.to_key_order(tokens) is tokens
    other = replace(same, chunk_k=(2, 2, 4))
    as_keys = other.to_key_order(tokens[:, :, order(other)]).flatten()
    assert torch.equal(as_keys.long(), order(replace(other, chunk_q=other.chunk_k)))


@pytest.mark.parametrize(
    ("sparsity", "num_frames", "expected"),
    [(0.9375, 48, 165), (0.9, 4, 21), (0.75, 4, 55), (0.7, 4, 66), (0.999, 4, 1), (1.0, 4, 1), (0.0, 4, 220)],
)
def test_sparsity_counts_in_python_floats(sparsity: float, num_frames: int, expected: int) -> None:
    bricks = Bricks((num_frames, 44, 80), (4, 4, 4), (4, 4, 4), sparsity=sparsity)
    assert [region.min_kept for region in bricks.regions()] == [expected]


def test_condition_queries_count_from_condition_bricks() -> None:
    bricks = Bricks((12, 8, 8), (4, 4, 4), (4, 4, 4), num_condition_frames=4, sparsity=0.5)
    assert list(bricks.regions()) == [Region(slice(0, 4), 4, 2), Region(slice(4, 12), 12, 6)]


def test_a_grid_of_condition_frames_alone_has_one_region() -> None:
    bricks = Bricks((4, 8, 8), (4, 4, 4), (4, 4, 4), num_condition_frames=4, sparsity=0.5)
    assert list(bricks.regions()) == [Region(slice(0, 4), 4, 2)]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.45, 1),  # below the first: yet one is kept
        (0.55, 1),
        (0.76, 2),  # the brick that crosses is left out
        (1.1, 4),
    ],
)
def test_the_threshold_leaves_the_crossing_brick_out(threshold: float, expected: int) -> None:
    probabilities = torch.tensor([0.125, 0.5, 0.125, 0.25])
    q = torch.tensor([[4.0, 0, 0, 0]])
    k = torch.zeros(4, 4)
    k[:, 0] = probabilities.log() * 4**0.5 / 4
    chosen = select_bricks(
        q, k, Region(slice(0, 1), 4, 1), replace(CUBES, sparsity=None, cdf_threshold=threshold)
    )
    assert chosen.counts is not None
    assert chosen.counts.tolist() == [expected]
    assert chosen.bricks[0, :2].tolist() == [1, 3]


def test_the_larger_of_both_counts_is_kept() -> None:
    q, k = torch.randn(5, 8), torch.randn(7, 8)
    rules = replace(CUBES, cdf_threshold=0.5)
    counts = select_bricks(q, k, Region(slice(0, 5), 7, 3), rules).counts
    alone = select_bricks(q, k, Region(slice(0, 5), 7, 1), rules).counts
    assert counts is not None
    assert alone is not None
    assert torch.equal(counts, alone.clamp(min=3))


def test_of_equal_key_bricks_the_first_are_kept() -> None:
    q, k = torch.ones(1, 1), torch.tensor([0.0, 1, 2, 1, -1, 1, 2, 1])[:, None]
    chosen = select_bricks(q, k, Region(slice(0, 1), 8, 4), CUBES)
    assert chosen.bricks.tolist() == [[2, 6, 1, 3]]


@pytest.mark.parametrize("rule", [{"sparsity": 0.5}, {"sparsity": None, "cdf_threshold": 0.5}])
def test_counts_of_all_query_bricks_are_those_of_the_regions(rule: dict[str, Any]) -> None:
    bricks = Bricks((6, 4, 4), (2, 2, 2), (2, 2, 2), **({"num_condition_frames": 2} | rule))
    q, k = torch.randn(3, 12, 8), torch.randn(3, 12, 8)
    counts = count_kept(q @ k.mT, 8, bricks)
    for region in bricks.regions():
        chosen = select_bricks(q[:, region.queries], k[:, : region.num_keys], region, bricks)
        expected = region.min_kept if chosen.counts is None else chosen.counts
        assert (counts[:, region.queries] == expected).all()


def test_low_precision_is_pooled_in_fp32() -> None:
    x = torch.full((1, 1, 8, 1), 256.0, dtype=torch.bfloat16)
    x[0, 0, 0] = 258
    pooled = mean_pool(x, (2, 2, 2))
    assert pooled.dtype == torch.float32
    assert pooled.item() == 256.25


def test_low_precision_comes_out_as_it_went_in() -> None:
    tokens = changed(Tensor.bfloat16, random_tokens(CUBES))
    out = sparse(*tokens, bricks=CUBES)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.double(), plainly(*changed(Tensor.double, tokens), bricks=CUBES), atol=0.03, rtol=0.02
    )


def test_tokens_need_not_be_contiguous() -> None:
    tokens = random_tokens(CUBES)
    strided = changed(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), tokens)
    assert torch.equal(
        reference_attention(*strided, bricks=CUBES), reference_attention(*tokens, bricks=CUBES)
    )


def test_few_keys_are_copied_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(CUBES)
    expected = reference_attention(*tokens, bricks=CUBES)
    copied = []
    gathered = block_sparse._attend_gathered

    def watched(q: Tensor, k: Tensor, v: Tensor, chosen: Selection) -> Tensor:
        copied.append(chosen.bricks.numel() * k[0].numel())
        return gathered(q, k, v, chosen)

    monkeypatch.setattr(block_sparse, "_attend_gathered", watched)
    monkeypatch.setattr(block_sparse, "GATHERED_ELEMENTS", 600)
    torch.testing.assert_close(reference_attention(*tokens, bricks=CUBES), expected)
    assert max(copied) <= 600
    assert len(copied) > 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"grid": (4, 4, 5)},
        {"chunk_k": (2, 3, 2)},
        {"num_condition_frames": 1},
        {"num_condition_frames": 6},
        {"sparsity": None},
    ],
)
def test_bricks_that_cannot_be_are_a_mistake_of_the_program(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        replace(CUBES, **wrong)
