"""Quantise the large matrices of the blocks: an approximation that halves their memory.

The first and the last block lose the most accuracy, so they keep their dtype, and so does the projection to
text KV, which runs once for a job.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.io.checkpoint import Convert
from model.spec.errors import DeviceError
from model.spec.memory import Quantize
from model.transformer.block import Block
from model.transformer.config import QUANTISED, DitConfig, quantised_weights
from model.transformer.dit import Dit
from model.transformer.fp8 import Fp8Linear
from model.transformer.int8 import Int8Linear
from model.transformer.quantised_linear import QuantisedLinear

TRIED_ROWS = 1560  # tokens of a latent frame at 480p
LAYERS: Mapping[Quantize, type[QuantisedLinear]] = {"fp8": Fp8Linear, "int8": Int8Linear}


def quantise_when_loaded(quantize: Quantize, depth: int) -> Convert | None:
    """Return the `convert` with which `load_module` quantises the weights that `quantise` would quantise.

    So the device never holds all of the large matrices in another format. Return None for `none`.
    """
    if quantize == "none":
        return None
    layer, names = LAYERS[quantize], quantised_weights(depth)

    def convert(name: str, tensor: Tensor) -> Tensor | nn.Linear:
        return layer(_linear(tensor)) if name in names else tensor

    return convert


def quantise(dit: Dit, quantize: Quantize) -> None:
    """Quantise the large matrices. Raises DeviceError if the device cannot multiply them."""
    check_device(quantize, dit.x_embedder.proj.weight.device, dit.dtype, dit.config)
    quantise_blocks(dit, quantize)


def quantise_blocks(dit: Dit, quantize: Quantize) -> None:
    """Do what `quantise` does on any device, also meta."""
    for block in dit.blocks[1:-1]:
        quantise_block(block, quantize)


def quantise_block(block: Block, quantize: Quantize) -> None:
    """Quantise the large matrices of one block."""
    if quantize == "none":
        return
    for name in QUANTISED:
        owner, _, leaf = name.rpartition(".")
        module = block.get_submodule(owner)
        setattr(module, leaf, LAYERS[quantize](getattr(module, leaf)))


def check_device(quantize: Quantize, device: torch.device, dtype: torch.dtype, config: DitConfig) -> None:
    """Multiply once with a matrix of each size that is quantised.

    Some GPUs lack kernels for some sizes. Raises DeviceError if the device cannot multiply in this format.
    """
    if quantize == "none":
        return
    with torch.device("meta"):
        block = Block(config, dtype)
    try:
        for shape in {block.get_submodule(name).get_parameter("weight").shape for name in QUANTISED}:
            layer = LAYERS[quantize](_linear(torch.ones(shape, device=device, dtype=dtype)))
            layer.bias = nn.Parameter(torch.ones(shape[0], device=device, dtype=dtype), requires_grad=False)
            layer(torch.ones(TRIED_ROWS, shape[1], device=device, dtype=dtype))
    except RuntimeError as error:
        raise DeviceError(f"{device} cannot multiply in {quantize}: {error}") from error


def _linear(weight: Float[Tensor, "out in"]) -> nn.Linear:
    """Return a layer with this weight and without a bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
