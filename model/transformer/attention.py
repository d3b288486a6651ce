"""Compute dense attention with the fastest kernel that the device has.

Queries, keys and values are used with the strides that they come with, and results are contiguous token by
token, which is what the next projection reads: no tensor is copied to change its order.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = [  # on CUDA, in order of preference; PyTorch skips a kernel that does not support the inputs
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class KV(NamedTuple):
    """Keys and values of self-attention in one block. Keys are normalised and rotated."""

    k: Float[Tensor, "b a s d"]
    v: Float[Tensor, "b a s d"]

    def append(self, k: Float[Tensor, "b a n d"], v: Float[Tensor, "b a n d"]) -> "KV":
        """Return these keys and values, repeated for each sample of `k` and `v`, followed by `k` and `v`."""
        return KV(
            *(torch.cat([a.expand(len(b), -1, -1, -1), b], 2) for a, b in zip(self, (k, v), strict=True))
        )

    def chunk_heads(self, count: int) -> "list[KV]":
        """Return equal parts with consecutive heads, as views."""
        return [KV(*part) for part in zip(self.k.chunk(count, 1), self.v.chunk(count, 1), strict=True)]


class TextKV(NamedTuple):
    """Keys and values of the text in one block. `mask` is None unless padding is excluded from the keys."""

    k: Float[Tensor, "b a l d"]
    v: Float[Tensor, "b a l d"]
    mask: Bool[Tensor, "b 1 1 l"] | None


def attend(
    q: Float[Tensor, "b a n d"],
    k: Float[Tensor, "b a s d"],
    v: Float[Tensor, "b a s d"],
    num_condition: int = 0,
) -> Float[Tensor, "b a n d"]:
    """Return softmax(qkᵀ/√d)v. The first `num_condition` tokens attend only to one another."""
    if not num_condition:
        return _attend(q, k, v)
    q_condition, q_noise = q[:, :, :num_condition], q[:, :, num_condition:]
    condition = _attend(q_condition, k[:, :, :num_condition], v[:, :, :num_condition])
    token_by_token = [x.transpose(1, 2) for x in (condition, _attend(q_noise, k, v))]
    return torch.cat(token_by_token, dim=1).transpose(1, 2)


class PartialAttention(NamedTuple):
    """The result of attention to some of the keys.

    `lse` is the logarithm of the sum of the exponentials of the scores. It is -inf for a query that
    attends to none of the keys; then `out` is any finite value.
    """

    out: Float[Tensor, "b a n d"]
    lse: Float[Tensor, "b a n"]


def attend_to_parts(
    q: Float[Tensor, "b a n d"], parts: Iterable[tuple[KV, int]], num_condition: int = 0
) -> Float[Tensor, "b a n d"]:
    """Return `attend` for keys and values that come part by part.

    Each part begins with its number of condition tokens, the only ones to which the first `num_condition`
    queries attend.
    """
    queries = q[:, :, :num_condition], q[:, :, num_condition:]
    sums: list[PartialAttention | None] = [None, None]
    for kv, num_condition_keys in parts:
        keys = KV(*(x[:, :, :num_condition_keys] for x in kv)), kv
        for i, (some_q, some_kv) in enumerate(zip(queries, keys, strict=True)):
            if some_q.shape[2] and some_kv.k.shape[2]:
                partial, before = attend_partially(some_q, *some_kv), sums[i]
                sums[i] = partial if before is None else merge(before, partial)
                del partial, before
        del kv, keys, some_kv  # freed before the next part is received
    outs = [rows if each is None else each.out.to(q.dtype) for rows, each in zip(queries, sums, strict=True)]
    if not num_condition:
        return outs[1]
    return torch.cat([x.transpose(1, 2) for x in outs], dim=1).transpose(1, 2)


def merge(one: PartialAttention, other: PartialAttention) -> PartialAttention:
    """Return attention to the keys of both, in fp32 at least."""
    lse = torch.logaddexp(one.lse, other.lse)
    finite = lse.clamp(min=torch.finfo(lse.dtype).min)  # where neither has a key, -inf - -inf would be NaN
    weight, other_weight = ((each.lse - finite).exp()[..., None] for each in (one, other))
    return PartialAttention((one.out * weight).addcmul_(other.out, other_weight), lse)


def attend_to_text(q: Float[Tensor, "b g m a d"], text_kv: TextKV) -> Float[Tensor, "b g m a d"]:
    """Return softmax(qkᵀ/√d)v over the text tokens."""
    out = _attend(q.flatten(1, 2).transpose(1, 2), text_kv.k, text_kv.v, text_kv.mask)
    return torch.unflatten(out.transpose(1, 2), 1, q.shape[1:3])


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, mask)
    with sdpa_kernel(KERNELS, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, mask)


def attend_partially(
    q: Float[Tensor, "b a n d"], k: Float[Tensor, "b a s d"], v: Float[Tensor, "b a s d"]
) -> PartialAttention:
    """Attend to some of the keys, at least one, with at least one query.

    `scaled_dot_product_attention` does not return what `merge` needs, so the kernels are called directly.
    """
    if not q.is_cuda:
        return PartialAttention(*_kernel("flash_attention_for_cpu")(q, k, v))
    params = SDPAParams(q, k, v, None, 0.0, False, False)  # no mask, dropout, causality, shared heads
    if can_use_cudnn_attention(params):
        out, lse, *_ = _kernel("cudnn_attention")(q, k, v, None, compute_log_sumexp=True)
    elif can_use_flash_attention(params):
        out, lse, *_ = _kernel("flash_attention")(q, k, v)
    else:
        out, lse, *_ = _kernel("efficient_attention")(q, k, v, None, compute_log_sumexp=True)
    # cuDNN's has an axis of size 1 at its end, and that of the last kernel is padded.
    return PartialAttention(out, lse.flatten(2)[:, :, : q.shape[2]])


def _kernel(name: str) -> Callable[..., Sequence[Tensor]]:
    """Return a kernel of `scaled_dot_product_attention`: inputs to the result, the log-sum-exp, and more."""
    return cast(Callable[..., Sequence[Tensor]], getattr(torch.ops.aten, f"_scaled_dot_product_{name}"))
