"""Apply classifier-free guidance with an optimised scale (CFG-Zero*, arXiv 2503.18886)."""

from jaxtyping import Float
from torch import Tensor

EPS = 1e-8


def guide(
    unconditional: Float[Tensor, "b z f h w"], conditional: Float[Tensor, "b z f h w"], scale: float
) -> Float[Tensor, "b z f h w"]:
    """Return s·u + scale·(v − s·u), where s·u is the projection of the conditional v on the unconditional u.

    As in LongCat-Video, the dot products of a sample run over all frames of the forward. They include the
    predictions for condition frames, which have no meaning, unless the condition KV replaces those frames.
    """
    u, v = unconditional.flatten(1), conditional.flatten(1)
    projection = (v * u).sum(1, keepdim=True) / (u.square().sum(1, keepdim=True) + EPS)
    base = projection.view(-1, 1, 1, 1, 1) * unconditional
    return base + scale * (conditional - base)
