"""Multiply in fp8: rows of tokens and rows of weights in e4m3, each row with a scale.

This is an approximation that halves the memory of the large matrices of a block. On CUDA (Ada, Hopper and
later) one kernel multiplies and scales; elsewhere the quantised values are multiplied in fp32, which is the
definition.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.io.checkpoint import Convert
from model.spec.errors import DeviceError
from model.transformer.config import QUANTISED, quantised_weights
from model.transformer.dit import Dit

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_ROW = 1e-12  # avoids division by zero for a row of zeros


def quantise_rows(x: Float[Tensor, "r in"]) -> tuple[Float[Tensor, "r in"], Float[Tensor, "r 1"]]:
    """Return rows in e4m3, each scaled to the range of e4m3, and their scales in fp32."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ROW) / LARGEST
    return (x / scale).to(E4M3), scale


def reference_product(
    x: Float[Tensor, "r in"],
    x_scale: Float[Tensor, "r 1"],
    weight: Float[Tensor, "out in"],
    weight_scale: Float[Tensor, "out 1"],
) -> Float[Tensor, "r out"]:
    """Return x · weightᵀ of quantised rows in fp32. This defines what the kernel computes."""
    return (x.float() * x_scale) @ (weight.float() * weight_scale).t()


def fused_product(
    x: Float[Tensor, "r in"],
    x_scale: Float[Tensor, "r 1"],
    weight: Float[Tensor, "out in"],
    weight_scale: Float[Tensor, "out 1"],
) -> Float[Tensor, "r out"]:
    """Return x · weightᵀ in bf16, summed in fp32 by one kernel. `in` and `out` are multiples of 16."""
    return torch._scaled_mm(x, weight.t(), x_scale, weight_scale.t(), out_dtype=torch.bfloat16)  # noqa: SLF001


class Fp8Linear(nn.Linear):
    """A linear layer with its weight in e4m3. Inputs are quantised in every call."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weight of a layer. The bias is kept as it is."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight, scale = quantise_rows(linear.weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self._dtype = linear.weight.dtype

    def quantised(self, value: Float[Tensor, "out in"]) -> dict[str, Tensor]:
        """Return `weight` and `scale` of a weight, rounded as if the layer had been loaded with it."""
        weight, scale = quantise_rows(value.to(self._dtype))
        return {"weight": weight, "scale": scale}

    def forward(self, x: Float[Tensor, "*rest in"]) -> Float[Tensor, "*rest out"]:
        """Return the product in the dtype of x."""
        product = fused_product if x.is_cuda else reference_product
        rows, scale = quantise_rows(x.flatten(0, -2))
        out = product(rows, scale, self.weight, self.scale).to(x.dtype)
        if self.bias is not None:
            out = out + self.bias
        return torch.unflatten(out, 0, x.shape[:-1])


def quantise_when_loaded(depth: int) -> Convert:
    """Return the `convert` with which `load_module` quantises the weights that `to_fp8` would quantise.

    So the device never holds all of the large matrices in another format.
    """
    names = quantised_weights(depth)

    def convert(name: str, tensor: Tensor) -> Tensor | nn.Linear:
        return Fp8Linear(_layer(tensor)) if name in names else tensor

    return convert


def to_fp8(dit: Dit) -> None:
    """Quantise the large matrices of all blocks except the first and the last, which lose the most accuracy.

    The projection to text KV, which runs once for a job, keeps its dtype. Raises DeviceError if the device
    cannot multiply in fp8.
    """
    check_device(dit.x_embedder.proj.weight.device, dit.dtype)
    quantise_blocks(dit)


def quantise_blocks(dit: Dit) -> None:
    """Do what `to_fp8` does on any device, also meta."""
    for block in dit.blocks[1:-1]:
        for name in QUANTISED:
            owner, _, leaf = name.rpartition(".")
            module = block.get_submodule(owner)
            setattr(module, leaf, Fp8Linear(getattr(module, leaf)))


def check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Raise DeviceError if the device cannot multiply in fp8."""
    ones = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        Fp8Linear(_layer(ones))(ones)
    except RuntimeError as error:
        raise DeviceError(f"{device} cannot multiply in fp8: {error}") from error


def _layer(weight: Float[Tensor, "out in"]) -> nn.Linear:
    """Return a layer with this weight and without a bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
