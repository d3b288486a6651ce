"""Block-sparse attention over bricks of tokens: the plain PyTorch way, and the choice of the fast one.

`model.tokens` calls `block_sparse_attention`; on CUDA the attending itself is `model.block_sparse_triton`,
which is loaded only there. What is kept is `model.bricks`' affair. This module does not know of layers, or
that heads may be spread over several devices: it is given all tokens of the heads at hand.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.transformer.block_sparse_bricks import Bricks, Chosen, choose, pool

GATHERED_ELEMENTS = 1 << 24  # at most so many key elements are copied out at a time


def block_sparse_attention(
    q: Float[Tensor, "b a n d"], k: Float[Tensor, "b a n d"], v: Float[Tensor, "b a n d"], bricks: Bricks
) -> Float[Tensor, "b a n d"]:
    """softmax(qkᵀ/√d)v within the chosen bricks; all in query-brick order, q and k after RoPE."""
    k, v = bricks.in_key_order(k), bricks.in_key_order(v)
    if q.is_cuda and find_spec("triton"):
        from model.transformer.block_sparse_triton import attend  # noqa: PLC0415  (Triton comes with CUDA alone)

        return attend(q, k, v, bricks)
    return attend_plainly(q, k, v, bricks)


def attend_plainly(
    q: Float[Tensor, "b a n d"], k: Float[Tensor, "b a n d"], v: Float[Tensor, "b a n d"], bricks: Bricks
) -> Float[Tensor, "b a n d"]:
    """The definition: k and v in key-brick order, q and the result in query-brick order."""
    pooled_q, pooled_k = pool(q, bricks.chunk_q), pool(k, bricks.chunk_k)
    out = torch.empty_like(q)
    queries, keys, values, outs = (
        torch.unflatten(x, 2, (-1, prod(chunk)))
        for x, chunk in ((q, bricks.chunk_q), (k, bricks.chunk_k), (v, bricks.chunk_k), (out, bricks.chunk_q))
    )
    for region in bricks.regions():
        for batch, head in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:2])).tolist():
            here = (batch, head, region.queries)
            chosen = choose(pooled_q[here], pooled_k[batch, head, : region.num_keys], region, bricks)
            outs[here] = _attend_chosen(queries[here], keys[batch, head], values[batch, head], chosen)
    return out


def _attend_chosen(
    q: Float[Tensor, "q t d"], k: Float[Tensor, "s u d"], v: Float[Tensor, "s u d"], chosen: Chosen
) -> Float[Tensor, "q t d"]:
    """One head; a few query bricks at a time, so that the copied keys stay small."""
    if chosen.counts is not None:
        chosen = chosen._replace(bricks=chosen.bricks[:, : int(chosen.counts.max())])
    step = max(1, GATHERED_ELEMENTS // (chosen.bricks.shape[1] * k[0].numel()))
    starts = range(0, len(q), step)
    return torch.cat([_attend_gathered(q[at : at + step], k, v, chosen.part(at, at + step)) for at in starts])


def _attend_gathered(
    q: Float[Tensor, "q t d"], k: Float[Tensor, "s u d"], v: Float[Tensor, "s u d"], chosen: Chosen
) -> Float[Tensor, "q t d"]:
    """Query bricks stand where heads usually do, which the fast kernels understand."""
    keys, values = k[chosen.bricks].flatten(1, 2), v[chosen.bricks].flatten(1, 2)
    kept = chosen.kept()
    mask = None if kept is None else kept.repeat_interleave(k.shape[1], dim=1)[None, :, None]
    return F.scaled_dot_product_attention(q[None], keys[None], values[None], mask)[0]
