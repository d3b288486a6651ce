"""Load the transformer from a checkpoint: onto the device, into host memory, or sharded over ranks."""

from functools import partial

import torch
from torch import Tensor

from model.io.checkpoint import Weights, load_module, load_tensors
from model.parallel.mesh import ContextParallel
from model.parallel.sharded_blocks import ShardedBlocks
from model.spec.memory import Quantize
from model.transformer.block import Block
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.flat_blocks import FlatBlocks
from model.transformer.quantise import check_device, quantise_blocks, quantise_when_loaded
from model.transformer.quantised_linear import QuantisedLinear
from model.transformer.streamed_blocks import StreamedBlocks

BLOCKS = "blocks"


def load_dit(
    config: DitConfig,
    dtype: torch.dtype,
    weights: Weights,
    parallel: ContextParallel,
    *,
    quantize: Quantize = "none",
    stream_weights: bool = False,
) -> Dit:
    """Load the transformer onto this rank's device, with its large matrices stored as `quantize` says.

    With `stream_weights`, the weights of the blocks stay in the memory of the host. Where the group shards
    weights, a rank reads only the tensors of which it holds a part.

    Raises:
        CheckpointError: a tensor is missing or has the wrong shape, or a file cannot be read.
        DeviceError: the device does not multiply matrices that are stored so.
    """
    check_device(quantize, parallel.device, dtype, config)
    build = partial(Dit, config, dtype)
    convert = quantise_when_loaded(quantize, config.depth)
    if parallel.weights_group is None and not stream_weights:
        return load_module(build, weights, parallel.device, convert)

    with torch.device("meta"):
        dit = build()
    wanted = dit.state_dict(keep_vars=True)
    weights.check_names(wanted)
    quantise_blocks(dit, quantize)
    blocks: FlatBlocks[Block]
    if stream_weights:
        blocks = StreamedBlocks(BLOCKS, dit.blocks, parallel.device)
    else:
        assert parallel.weights_group is not None
        blocks = ShardedBlocks(BLOCKS, dit.blocks, parallel.weights_group, parallel.device)
    dit.block_weights = blocks
    outside = {name: tensor for name, tensor in wanted.items() if not name.startswith(f"{BLOCKS}.")}
    load_tensors(dit, outside, weights, parallel.device)
    held = {name: wanted[name] for name in wanted.keys() - outside if blocks.holds(name.rpartition(".")[0])}

    def store(name: str, tensor: Tensor) -> None:
        loaded = convert(name, tensor) if convert else tensor
        if isinstance(loaded, QuantisedLinear):
            blocks.store(name.replace(".weight", ".scale"), loaded.scale)
            loaded = loaded.weight
        assert isinstance(loaded, Tensor)
        blocks.store(name, loaded)

    for _ in weights.read_all(held, parallel.device, store):
        pass
    return dit.eval()
