"""Rotary positions over frames, rows and columns (RoPE 3D), in fp32.

`model.tokens` computes the angles once for each shape; `model.attention` rotates q and k with them.
Positions are data: nothing here knows in which order tokens lie, or that they are shared out.
"""

import torch
from jaxtyping import Float
from torch import Tensor

BASE = 10000.0


def angles_3d(grid: tuple[int, int, int], head_dim: int, first_frame: int = 0) -> Float[Tensor, "f h w half"]:
    """Angle of each dimension pair at each position of a grid (f, h, w) that starts at `first_frame`.

    With m = d // 6, rows and columns take 2m dimensions each and frames the first d − 4m.
    """
    side = head_dim // 6 * 2
    starts, widths = (first_frame, 0, 0), (head_dim - 2 * side, side, side)
    axes = [_angles(start, count, width) for start, count, width in zip(starts, grid, widths, strict=True)]
    f, h, w = axes
    places = (f[:, None, None], h[:, None], w)
    return torch.cat([axis.expand(*grid, -1) for axis in places], dim=-1)


def _angles(start: int, count: int, width: int) -> Float[Tensor, "n half"]:
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    positions = torch.arange(start, start + count, dtype=torch.float32)
    return torch.outer(positions, 1.0 / BASE**exponents)


def rotate(x: Float[Tensor, "b g m a d"], turn: Float[Tensor, "g m 1 half 2"]) -> Float[Tensor, "b g m a d"]:
    """Turn each interleaved pair of dimensions; `turn` holds cosine and sine. Same dtype as x.

    The pair (x, y) becomes (x, y)·cos + (y, x)·(−sin, sin).
    """
    pairs = torch.unflatten(x.float(), -1, (-1, 2))
    cos, sin = turn.chunk(2, dim=-1)
    signs = torch.arange(-1, 2, 2, device=x.device)
    turned = pairs * cos + pairs.flip(-1) * (signs * sin)
    return turned.flatten(-2).to(x.dtype)
