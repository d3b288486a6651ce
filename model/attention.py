"""Dense attention between the tokens of some heads.

`model.tokens` calls `attend` on all tokens of the heads at hand. It does not know of layers, nor of bricks.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class KeysValues(NamedTuple):
    """Keys and values of the heads at hand; keys are normed, and rotated where positions count."""

    k: Float[Tensor, "b a n d"]
    v: Float[Tensor, "b a n d"]

    def then(self, k: Float[Tensor, "b a n d"], v: Float[Tensor, "b a n d"]) -> "KeysValues":
        """These, once for each sample of the others, and the others after them."""
        return KeysValues(
            *(torch.cat([a.expand(len(b), -1, -1, -1), b], 2) for a, b in zip(self, (k, v), strict=True))
        )


def attend(
    q: Float[Tensor, "b a n d"],
    k: Float[Tensor, "b a s d"],
    v: Float[Tensor, "b a s d"],
    num_condition: int = 0,
) -> Float[Tensor, "b a n d"]:
    """softmax(qkᵀ/√d)v, where the first `num_condition` tokens attend only to one another."""
    if not num_condition:
        return F.scaled_dot_product_attention(q, k, v)
    clean, noise = q[:, :, :num_condition], q[:, :, num_condition:]
    among = F.scaled_dot_product_attention(clean, k[:, :, :num_condition], v[:, :, :num_condition])
    return torch.cat([among, F.scaled_dot_product_attention(noise, k, v)], dim=2)
