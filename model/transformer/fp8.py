"""Multiply in fp8: rows of tokens and rows of weights in e4m3, each row with a scale.

On CUDA (Ada, Hopper and later) one kernel multiplies and scales; elsewhere the quantised values are
multiplied in fp32, which is the definition.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.transformer.quantised_linear import QuantisedLinear, Rows, largest_of_rows

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
ELEMENTS_AT_A_TIME = 1 << 24
"""Elements that are divided at a time without compilation, since the quotients are in fp32."""

LEAST_ROWS = 512
"""Rows of tokens that a kernel is given at least: for up to 256 long ones, cuBLAS has none on Hopper
(pytorch/ao#4582)."""


def quantise_rows(x: Float[Tensor, "r in"]) -> Rows:
    """Return rows in e4m3, each scaled to the range of e4m3."""
    scale = largest_of_rows(x) / LARGEST
    if torch.compiler.is_compiling():  # one kernel, which keeps the quotients in registers
        return Rows((x / scale).to(E4M3), scale)
    return Rows(_divided(x, scale), scale)


@torch.no_grad()
def _divided(x: Float[Tensor, "r in"], scale: Float[Tensor, "r 1"]) -> Float[Tensor, "r in"]:
    """Return x / scale in e4m3."""
    values = torch.empty_like(x, dtype=E4M3)
    num_rows = max(1, ELEMENTS_AT_A_TIME // x.shape[1])
    parts = (torch.split(tensor, num_rows) for tensor in (values, x, scale))
    for out, part, scale_of_part in zip(*parts, strict=True):
        out.copy_(part / scale_of_part)
    return values


def reference_product(
    x: Float[Tensor, "r in"],
    x_scale: Float[Tensor, "r 1"],
    weight: Float[Tensor, "out in"],
    weight_scale: Float[Tensor, "out 1"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "r out"]:
    """Return x · weightᵀ + bias of quantised rows in fp32. This defines what the kernel computes."""
    return F.linear(
        x.float() * x_scale, weight.float() * weight_scale, None if bias is None else bias.float()
    )


def fused_product(
    x: Float[Tensor, "r in"],
    x_scale: Float[Tensor, "r 1"],
    weight: Float[Tensor, "out in"],
    weight_scale: Float[Tensor, "out 1"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "r out"]:
    """Return x · weightᵀ + bias in bf16, summed in fp32 by one kernel. `in` and `out` are multiples of 16."""
    bias = None if bias is None else bias.to(torch.bfloat16)
    return torch._scaled_mm(  # noqa: SLF001
        x, weight.t(), x_scale, weight_scale.t(), bias=bias, out_dtype=torch.bfloat16
    )


class Fp8Linear(QuantisedLinear):
    """A linear layer with its weight in e4m3. Inputs are quantised in every call."""

    quantise_rows = staticmethod(quantise_rows)

    def forward(self, x: Float[Tensor, "*rest in"]) -> Float[Tensor, "*rest out"]:
        """Return the product in the dtype of x."""
        rows, product = x.flatten(0, -2), fused_product if x.is_cuda else reference_product
        missing = LEAST_ROWS - len(rows) if x.is_cuda else 0
        if missing > 0:
            rows = F.pad(rows, (0, 0, 0, missing))
        out = product(*quantise_rows(rows), self.weight, self.scale, self.bias)
        if missing > 0:
            out = out[:-missing]
        return torch.unflatten(out.to(x.dtype), 0, x.shape[:-1])
