"""Compute and apply rotary position embeddings over frames, rows and columns (3D RoPE), in fp32."""

import torch
from jaxtyping import Float
from torch import Tensor

BASE = 10000.0


def angles_3d(
    grid: tuple[int, int, int], head_dim: int, first_frame: int = 0
) -> Float[Tensor, "f token_rows token_columns half"]:
    """Return the angle of each pair of head dimensions at each position of a grid (frames, rows, columns).

    The frames of the grid are numbered from `first_frame`. Of the d dimensions of a head, rows and columns
    use 2 · (d // 6) each, and frames the first d − 4 · (d // 6).
    """
    side = head_dim // 6 * 2
    starts, widths = (first_frame, 0, 0), (head_dim - 2 * side, side, side)
    axes = [_angles(start, count, width) for start, count, width in zip(starts, grid, widths, strict=True)]
    f, h, w = axes
    return torch.cat([axis.expand(*grid, -1) for axis in (f[:, None, None], h[:, None], w)], dim=-1)


def _angles(start: int, count: int, width: int) -> Float[Tensor, "positions half"]:
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    positions = torch.arange(start, start + count, dtype=torch.float32)
    return torch.outer(positions, 1.0 / BASE**exponents)


def rotate(
    x: Float[Tensor, "b g m a d"], rotation: Float[Tensor, "g m 1 half 2"]
) -> Float[Tensor, "b g m a d"]:
    """Rotate each interleaved pair of dimensions by its angle. `rotation` holds cosine and sine.

    The pair (x, y) becomes (x, y) · cos + (y, x) · (−sin, sin). The result has the dtype of x.
    """
    dtype, pairs = x.dtype, torch.unflatten(x.float(), -1, (-1, 2))
    del x  # below are several fp32 tensors of this size
    cos, sin = rotation.chunk(2, dim=-1)
    signs = torch.arange(-1, 2, 2, device=pairs.device)
    rotated = pairs * cos
    rotated += pairs.flip(-1).mul_(signs * sin)
    return rotated.flatten(-2).to(dtype)
