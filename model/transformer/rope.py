"""Compute and apply rotary position embeddings over frames, rows and columns (3D RoPE), in fp32."""

import torch
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import CPU

BASE = 10000.0


def rotation_3d(
    grid: tuple[int, int, int], head_dim: int, first_frame: int = 0, device: torch.device = CPU
) -> Float[Tensor, "f token_rows token_columns half 2"]:
    """Return cosine and sine by which each pair of head dimensions is rotated at each position of a grid.

    The grid is (frames, rows, columns), and its frames are numbered from `first_frame`. Of the d dimensions
    of a head, rows and columns use 2 · (d // 6) each, and frames the first d − 4 · (d // 6).
    """
    side = head_dim // 6 * 2
    starts, widths = (first_frame, 0, 0), (head_dim - 2 * side, side, side)
    axes = zip(starts, grid, widths, strict=True)
    f, h, w = (_rotation(start, count, width).to(device) for start, count, width in axes)
    return torch.cat([axis.expand(*grid, -1, -1) for axis in (f[:, None, None], h[:, None], w)], dim=-2)


def _rotation(start: int, count: int, width: int) -> Float[Tensor, "positions half 2"]:
    """Return cosine and sine at each position along one axis, from the CPU: the same bits for all devices."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    positions = torch.arange(start, start + count, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / BASE**exponents)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


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
