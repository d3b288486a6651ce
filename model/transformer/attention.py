"""Dense attention between the tokens of some heads, by the fastest kernel that there is.

`model.tokens` calls `attend` on all tokens of the heads at hand, `model.block` has tokens attend to the text.
Queries, keys and values are taken as they lie in memory, and results lie token by token, as the matrices
after them want it: nothing is copied for its order. It does not know of layers, nor of bricks.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = [  # on CUDA, best first; each is passed over where it cannot do what is asked
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class KeysValues(NamedTuple):
    """Keys and values of the heads at hand; keys are normed, and rotated where positions count."""

    k: Float[Tensor, "b a n d"]
    v: Float[Tensor, "b a n d"]

    def then(self, k: Float[Tensor, "b a n d"], v: Float[Tensor, "b a n d"]) -> "KeysValues":
        """These, once for each sample of the others, and the others after them."""
        return KeysValues(
            *(torch.cat([a.expand(len(b), -1, -1, -1), b], 2) for a, b in zip(self, (k, v), strict=True))
        )


class TextKeysValues(NamedTuple):
    """The text as one block attends to it; `mask` only where padding is left out of the keys."""

    k: Float[Tensor, "b a l d"]
    v: Float[Tensor, "b a l d"]
    mask: Bool[Tensor, "b 1 1 l"] | None


def attend(
    q: Float[Tensor, "b a n d"],
    k: Float[Tensor, "b a s d"],
    v: Float[Tensor, "b a s d"],
    num_condition: int = 0,
) -> Float[Tensor, "b a n d"]:
    """softmax(qkᵀ/√d)v, where the first `num_condition` tokens attend only to one another."""
    if not num_condition:
        return _attend(q, k, v)
    clean, noise = q[:, :, :num_condition], q[:, :, num_condition:]
    among = _attend(clean, k[:, :, :num_condition], v[:, :, :num_condition])
    token_by_token = [x.transpose(1, 2) for x in (among, _attend(noise, k, v))]
    return torch.cat(token_by_token, dim=1).transpose(1, 2)


def attend_to_text(q: Float[Tensor, "b g m a d"], text: TextKeysValues) -> Float[Tensor, "b g m a d"]:
    """softmax(qkᵀ/√d)v over the text."""
    out = _attend(q.flatten(1, 2).transpose(1, 2), text.k, text.v, text.mask)
    return torch.unflatten(out.transpose(1, 2), 1, q.shape[1:3])


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, mask)
    with sdpa_kernel(KERNELS, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, mask)
