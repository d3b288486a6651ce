"""Matrix products in fp8: rows of tokens and rows of weights in e4m3, each with a scale of its own.

An approximation with which a group is loaded: `model.pipeline` calls `to_fp8` once, before the first job, and
from then on the large matrices of a block take half the memory; `model.lora` writes them by
`Fp8Linear.write`. On CUDA one kernel multiplies and scales (Ada, Hopper and later); elsewhere the same
numbers are multiplied in fp32, which is the definition. It knows nothing of steps, nor of what is multiplied.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.spec.errors import DeviceError
from model.transformer.dit import Dit

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_ROW = 1e-12  # a row of zeros is divided by something, too
LARGE = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.proj", "ffn.w1", "ffn.w2", "ffn.w3")


def quantised(x: Float[Tensor, "rows k"]) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows 1"]]:
    """Rows in e4m3 and their scales in fp32: the largest value of a row becomes the largest of e4m3."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ROW) / LARGEST
    return (x / scale).to(E4M3), scale


def plain_product(
    x: Float[Tensor, "n k"],
    x_scale: Float[Tensor, "n 1"],
    weight: Float[Tensor, "out k"],
    weight_scale: Float[Tensor, "out 1"],
) -> Float[Tensor, "n out"]:
    """Quantised x · weightᵀ in fp32: what the kernel is held to."""
    return (x.float() * x_scale) @ (weight.float() * weight_scale).t()


def fused_product(
    x: Float[Tensor, "n k"],
    x_scale: Float[Tensor, "n 1"],
    weight: Float[Tensor, "out k"],
    weight_scale: Float[Tensor, "out 1"],
) -> Float[Tensor, "n out"]:
    """The same in bf16 by one kernel, which sums in fp32; k and out must be multiples of 16."""
    return torch._scaled_mm(x, weight.t(), x_scale, weight_scale.t(), out_dtype=torch.bfloat16)  # noqa: SLF001


class Fp8Linear(nn.Linear):
    """A linear layer whose weight is kept in e4m3; its inputs are quantised as they come."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """The same layer, quantised. Its bias is kept as it is."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight, scale = quantised(linear.weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self._dtype = linear.weight.dtype

    @torch.no_grad()
    def write(self, value: Float[Tensor, "out k"]) -> None:
        """Take another weight, as if the layer had been loaded with it."""
        weight, scale = quantised(value.to(self._dtype))
        self.weight.copy_(weight)
        self.scale.copy_(scale)

    def forward(self, x: Float[Tensor, "*rest k"]) -> Float[Tensor, "*rest out"]:
        """In the dtype of x."""
        product = fused_product if x.is_cuda else plain_product
        rows, scale = quantised(x.flatten(0, -2))
        out = product(rows, scale, self.weight, self.scale).to(x.dtype)
        if self.bias is not None:
            out = out + self.bias
        return torch.unflatten(out, 0, x.shape[:-1])


def to_fp8(dit: Dit) -> None:
    """Quantise the large matrices of all blocks but the first and the last, which mind it most.

    What is computed once for a job (the text's keys and values) stays as it is. Raises DeviceError where the
    device has no such products: now, and not in the first job.
    """
    _try_out(dit.x_embedder.proj.weight.new_ones(16, 16))
    for block in dit.blocks[1:-1]:
        for name in LARGE:
            owner, _, leaf = name.rpartition(".")
            module = block.get_submodule(owner)
            setattr(module, leaf, Fp8Linear(getattr(module, leaf)))


def _try_out(ones: Float[Tensor, "16 16"]) -> None:
    layer = nn.Linear(16, 16, bias=False, device="meta")
    layer.weight = nn.Parameter(ones, requires_grad=False)
    try:
        Fp8Linear(layer)(ones)
    except RuntimeError as error:
        raise DeviceError(f"{ones.device} cannot multiply in fp8: {error}") from error
