"""Multiply by weights in int8 on CUDA in a Triton kernel, which widens them to bf16 in registers.

No copy of a weight is made, and the product is scaled where it is stored.
"""

# Triton's kernels take arguments without types, and Triton is not installed where this file is checked.
# ruff: noqa: ANN001, ANN202, PLR0913, PLR0917
# mypy: disable-error-code="untyped-decorator,no-untyped-def,import-not-found"

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from subprocess import SubprocessError

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int8
from torch import Tensor
from triton.errors import TritonError
from triton.testing import do_bench

from model.transformer.int8 import Int8Linear, quantise_rows

logger = logging.getLogger(__name__)

TILE_ROWS, TILE_OUT, TILE_IN = 128, 128, 64
NEIGHBOURS = 8  # tiles of rows whose programs run together, so that they find weights in the L2 cache
NUM_WARPS, NUM_STAGES = 8, 4
ROUNDING = 2**-6  # bound of the relative difference from the product of a weight that is rounded to bf16


class FusedInt8Linear(Int8Linear):
    """A linear layer with its weight in int8, which one kernel widens, multiplies and scales."""

    def forward(self, x: Float[Tensor, "*rest in"]) -> Float[Tensor, "*rest out"]:
        """Return the product in the dtype of x, summed in fp32."""
        out = fused_product(x.flatten(0, -2), self.weight, self.scale, self.bias)
        return torch.unflatten(out, 0, x.shape[:-1])


def is_faster(shapes: Iterable[torch.Size], rows: int, device: torch.device) -> bool:
    """Return whether products in bf16 with matrices of these shapes are faster in the kernel, and right."""
    kernel_ms = copies_ms = 0.0
    for shape in shapes:
        x = torch.randn(rows, shape[1], device=device, dtype=torch.bfloat16)
        weight, scale = quantise_rows(torch.randn(shape, device=device))
        try:
            found = fused_product(x, weight, scale, None)
        except (TritonError, SubprocessError, OSError, RuntimeError) as error:
            logger.warning("weights in int8 are copied for each product: the kernel failed: %s", error)
            return False
        expected = F.linear(x, (weight * scale).to(x.dtype))
        if not (found - expected).norm() <= ROUNDING * expected.norm():
            logger.warning("weights in int8 are copied for each product: the kernel computed another one")
            return False
        # The compiler copies and scales in one kernel, which moves as many bytes as a copy.
        copies_ms += do_bench(lambda x=x, weight=weight: F.linear(x, weight.to(x.dtype)))
        kernel_ms += do_bench(partial(fused_product, x, weight, scale, None))
    logger.info("int8 products of a block: %.1f ms in the kernel, %.1f with copies", kernel_ms, copies_ms)
    return kernel_ms < copies_ms


@torch.library.custom_op(
    "longcat_video::int8_product",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor",
)
def fused_product(
    x: Float[Tensor, "r in"],
    weight: Int8[Tensor, "out in"],
    scale: Float[Tensor, "out 1"],
    bias: Float[Tensor, " out"] | None,
) -> Float[Tensor, "r out"]:
    """Return x · (weight · scale)ᵀ + bias. To the compiler this is one operation."""
    x, (width_out, width_in) = x.contiguous(), weight.shape
    out = x.new_empty(len(x), width_out)
    _multiply[(triton.cdiv(len(x), TILE_ROWS) * triton.cdiv(width_out, TILE_OUT),)](
        x, weight, scale, bias, out, len(x), width_in, width_out,
        TILE_ROWS, TILE_OUT, TILE_IN, NEIGHBOURS, num_warps=NUM_WARPS, num_stages=NUM_STAGES,
    )  # fmt: skip
    return out


@fused_product.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


@triton.jit(do_not_specialize=["rows"])
def _multiply(
    x, weight, scale, bias, out,
    rows, width_in, width_out,
    TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_IN: tl.constexpr, NEIGHBOURS: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the product. Tiles of the same weights follow each other, NEIGHBOURS at a time."""
    tiles_out = tl.cdiv(width_out, TILE_OUT)
    group, within = tl.program_id(0) // (NEIGHBOURS * tiles_out), tl.program_id(0) % (NEIGHBOURS * tiles_out)
    in_group = tl.minimum(tl.cdiv(rows, TILE_ROWS) - group * NEIGHBOURS, NEIGHBOURS)
    row = (group * NEIGHBOURS + within % in_group) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    column = within // in_group * TILE_OUT + tl.arange(0, TILE_OUT)
    inner = tl.arange(0, TILE_IN)
    # Rows and columns outside the product wrap around, which needs no mask.
    x += (row % rows).to(tl.int64)[:, None] * width_in + inner[None, :]
    weight += (column % width_out)[:, None] * width_in + inner[None, :]
    sums = tl.zeros([TILE_ROWS, TILE_OUT], tl.float32)
    for start in range(0, width_in, TILE_IN):
        real = (inner < width_in - start)[None, :]
        tile_x, tile_weight = tl.load(x, mask=real, other=0.0), tl.load(weight, mask=real, other=0)
        sums = tl.dot(tile_x, tile_weight.to(tile_x.dtype).T, sums)
        x += TILE_IN
        weight += TILE_IN
    real_columns = column < width_out
    sums *= tl.load(scale + column, mask=real_columns)[None, :]
    if bias is not None:
        sums += tl.load(bias + column, mask=real_columns).to(tl.float32)[None, :]
    tl.store(
        out + row.to(tl.int64)[:, None] * width_out + column[None, :],
        sums.to(out.dtype.element_ty),
        mask=(row < rows)[:, None] & real_columns[None, :],
    )
