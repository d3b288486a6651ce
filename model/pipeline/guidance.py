"""Classifier-free guidance with an optimised scale (CFG-Zero*, arXiv 2503.18886).

`model.sample` calls it with what the transformer predicted for both texts.
"""

from jaxtyping import Float
from torch import Tensor

EPS = 1e-8


def guide(
    unconditional: Float[Tensor, "b z f h w"], conditional: Float[Tensor, "b z f h w"], scale: float
) -> Float[Tensor, "b z f h w"]:
    """s·u + scale·(v − s·u), where s·u is the projection of v on u, per sample over every frame given.

    LongCat-Video takes the dot products over all frames that the transformer was given: meaningless
    predictions for condition frames count, where the condition cache does not leave them out.
    """
    u, v = unconditional.flatten(1), conditional.flatten(1)
    projection = (v * u).sum(1, keepdim=True) / (u.square().sum(1, keepdim=True) + EPS)
    base = projection.view(-1, 1, 1, 1, 1) * unconditional
    return base + scale * (conditional - base)
