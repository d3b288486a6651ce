"""Quantise the large matrices of the blocks: an approximation that halves their memory.

The first and the last block lose the most accuracy, so they keep their dtype, and so does the projection to
text KV, which runs once for a job.
"""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.io.checkpoint import Convert
from model.parallel.broadcast import from_leader
from model.parallel.mesh import ContextParallel
from model.spec.errors import DeviceError
from model.spec.memory import Quantize
from model.transformer.block import Block
from model.transformer.config import QUANTISED, DitConfig, quantised_weights
from model.transformer.dit import Dit
from model.transformer.fp8 import Fp8Linear
from model.transformer.int8 import Int8Linear
from model.transformer.quantised_linear import QuantisedLinear

Layer = type[QuantisedLinear]

TRIED_ROWS = 1560  # tokens of a latent frame at 480p
TIMED_ROWS = 24 * TRIED_ROWS  # tokens of a video of the default size, which ranks divide
LAYERS: Mapping[Quantize, Layer] = {"fp8": Fp8Linear, "int8": Int8Linear}


def choose_layer(
    quantize: Quantize, parallel: ContextParallel, dtype: torch.dtype, config: DitConfig
) -> Layer | None:
    """Return the layer for the large matrices, or None for `none`. All ranks call this together.

    In int8 on CUDA there are two layers. The leader tries which is faster, and all ranks use the same.

    Raises:
        DeviceError: the device cannot multiply in this format.
    """
    if quantize == "none":
        return None
    device = parallel.device
    check_device(quantize, device, dtype, config)
    if quantize == "int8" and device.type == "cuda" and dtype == torch.bfloat16 and find_spec("triton"):
        from model.transformer.int8_triton import FusedInt8Linear, is_faster  # noqa: PLC0415  Triton needs CUDA

        tried = partial(is_faster, _quantised_shapes(config), TIMED_ROWS // parallel.size, device)
        together = parallel.wider[-1] if parallel.wider else parallel  # all that may share a video
        if from_leader(together, tried):
            return FusedInt8Linear
    return LAYERS[quantize]


def quantise_when_loaded(layer: Layer | None, depth: int) -> Convert | None:
    """Return the `convert` with which `load_module` quantises the weights that `quantise` would quantise.

    So the device never holds all of the large matrices in another format. Return None for no layer.
    """
    if layer is None:
        return None
    names = quantised_weights(depth)

    def convert(name: str, tensor: Tensor) -> Tensor | nn.Linear:
        return layer(_linear(tensor)) if name in names else tensor

    return convert


def quantise(dit: Dit, quantize: Quantize) -> None:
    """Quantise the large matrices. Raises DeviceError if the device cannot multiply them."""
    parallel = ContextParallel(dit.x_embedder.proj.weight.device)
    quantise_blocks(dit, choose_layer(quantize, parallel, dit.dtype, dit.config))


def quantise_blocks(dit: Dit, layer: Layer | None) -> None:
    """Do what `quantise` does on any device, also meta."""
    for block in dit.blocks[1:-1]:
        quantise_block(block, layer)


def quantise_block(block: Block, layer: Layer | None) -> None:
    """Quantise the large matrices of one block."""
    if layer is None:
        return
    for name in QUANTISED:
        owner, _, leaf = name.rpartition(".")
        module = block.get_submodule(owner)
        setattr(module, leaf, layer(getattr(module, leaf)))


def check_device(quantize: Quantize, device: torch.device, dtype: torch.dtype, config: DitConfig) -> None:
    """Multiply once with a matrix of each size that is quantised.

    Some GPUs lack kernels for some sizes. Raises DeviceError if the device cannot multiply in this format.
    """
    ones = partial(torch.ones, device=device, dtype=dtype)
    try:
        for shape in set(_quantised_shapes(config)):
            layer = LAYERS[quantize](_linear(ones(shape)))
            layer.bias = nn.Parameter(ones(shape[0]), requires_grad=False)
            layer(ones(TRIED_ROWS, shape[1]))
    except RuntimeError as error:
        raise DeviceError(f"{device} cannot multiply in {quantize}: {error}") from error


def _quantised_shapes(config: DitConfig) -> list[torch.Size]:
    """Return the shapes of the large matrices of a block."""
    with torch.device("meta"):
        block = Block(config, torch.bfloat16)
    return [block.get_submodule(name).get_parameter("weight").shape for name in QUANTISED]


def _linear(weight: Float[Tensor, "out in"]) -> nn.Linear:
    """Return a layer with this weight and without a bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
