"""Compute dense attention with the fastest kernel that the device has.

Queries, keys and values are used with the strides that they come with, and results are contiguous token by
token, which is what the next projection reads: no tensor is copied to change its order.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
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


def attend_to_text(q: Float[Tensor, "b g m a d"], text_kv: TextKV) -> Float[Tensor, "b g m a d"]:
    """Return softmax(qkᵀ/√d)v over the text tokens."""
    out = _attend(q.flatten(1, 2).transpose(1, 2), text_kv.k, text_kv.v, text_kv.mask)
    return torch.unflatten(out.transpose(1, 2), 1, q.shape[1:3])


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, mask)
    with sdpa_kernel(KERNELS, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, mask)
