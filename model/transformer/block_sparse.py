"""Compute block-sparse attention: with a Triton kernel on CUDA, elsewhere in PyTorch."""

from __future__ import annotations

from importlib.util import find_spec
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.transformer.block_sparse_bricks import Bricks, Selection, mean_pool, select_bricks

GATHERED_ELEMENTS = 1 << 24  # limit on the elements of the keys that are copied at a time


def block_sparse_attention(
    q: Float[Tensor, "b a n d"], k: Float[Tensor, "b a s d"], v: Float[Tensor, "b a s d"], bricks: Bricks
) -> Float[Tensor, "b a n d"]:
    """Return softmax(qkᵀ/√d)v within the selected bricks. All tokens are in query-brick order.

    The keys and values are those of all tokens, also if only some of the queries are here.
    """
    k, v = bricks.to_key_order(k), bricks.to_key_order(v)
    if q.is_cuda and find_spec("triton"):
        from model.transformer.block_sparse_triton import attend  # noqa: PLC0415  Triton needs CUDA

        return attend(q, k, v, bricks)
    return reference_attention(q, k, v, bricks)


def reference_attention(
    q: Float[Tensor, "b a n d"], k: Float[Tensor, "b a s d"], v: Float[Tensor, "b a s d"], bricks: Bricks
) -> Float[Tensor, "b a n d"]:
    """Compute the definition. k and v are in key-brick order, q and the result in query-brick order."""
    pooled_q, pooled_k = mean_pool(q, bricks.chunk_q), mean_pool(k, bricks.chunk_k)
    out = torch.empty_like(q)
    queries, keys, values, outs = (
        torch.unflatten(x, 2, (-1, prod(chunk)))
        for x, chunk in ((q, bricks.chunk_q), (k, bricks.chunk_k), (v, bricks.chunk_k), (out, bricks.chunk_q))
    )
    for region in bricks.regions():
        for batch, head in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:2])).tolist():
            here = (batch, head, region.queries)
            selection = select_bricks(
                pooled_q[here], pooled_k[batch, head, : region.num_keys], region, bricks
            )
            outs[here] = _attend_selected(queries[here], keys[batch, head], values[batch, head], selection)
    return out


def _attend_selected(
    q: Float[Tensor, "qb tq d"],
    k: Float[Tensor, "kb tk d"],
    v: Float[Tensor, "kb tk d"],
    selection: Selection,
) -> Float[Tensor, "qb tq d"]:
    """Attend in one head, a few query bricks at a time to limit the memory of the copied keys."""
    if selection.counts is not None:
        selection = selection._replace(bricks=selection.bricks[:, : int(selection.counts.max())])
    step = max(1, GATHERED_ELEMENTS // (selection.bricks.shape[1] * k[0].numel()))
    starts = range(0, len(q), step)
    return torch.cat([_attend_gathered(q[i : i + step], k, v, selection.slice(i, i + step)) for i in starts])


def _attend_gathered(
    q: Float[Tensor, "qb tq d"],
    k: Float[Tensor, "kb tk d"],
    v: Float[Tensor, "kb tk d"],
    selection: Selection,
) -> Float[Tensor, "qb tq d"]:
    """Copy the selected keys, and attend with query bricks in place of heads, as fast kernels support."""
    keys, values = k[selection.bricks].flatten(1, 2), v[selection.bricks].flatten(1, 2)
    kept = selection.kept_mask()
    mask = None if kept is None else kept.repeat_interleave(k.shape[1], dim=1)[None, :, None]
    return F.scaled_dot_product_attention(q[None], keys[None], values[None], mask)[0]
