"""Load the transformer from a checkpoint: onto the device, into host memory, or sharded over ranks."""

from functools import partial

import torch
from torch import Tensor

from model.io.checkpoint import Weights, load_module, load_tensors
from model.parallel.mesh import ContextParallel
from model.parallel.sharded_blocks import ShardedBlocks
from model.transformer.block import Block
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.flat_blocks import FlatBlocks
from model.transformer.fp8 import Fp8Linear, check_device, quantise_blocks, quantise_when_loaded
from model.transformer.streamed_blocks import StreamedBlocks

BLOCKS = "blocks"


def load_dit(
    config: DitConfig,
    dtype: torch.dtype,
    weights: Weights,
    parallel: ContextParallel,
    *,
    fp8: bool = False,
    stream_weights: bool = False,
) -> Dit:
    """Load the transformer onto this rank's device, with its large matrices in fp8 if `fp8` is set.

    With `stream_weights`, the weights of the blocks stay in the memory of the host. Where the group shards
    weights, a rank reads only the tensors of which it holds a part.

    Raises:
        CheckpointError: a tensor is missing or has the wrong shape, or a file cannot be read.
        DeviceError: the device does not support fp8.
    """
    if fp8:
        check_device(parallel.device, dtype)
    build = partial(Dit, config, dtype)
    convert = quantise_when_loaded(config.depth) if fp8 else None
    if parallel.weights_group is None and not stream_weights:
        return load_module(build, weights, parallel.device, convert)

    with torch.device("meta"):
        dit = build()
    wanted = dit.state_dict(keep_vars=True)
    weights.check_names(wanted)
    if fp8:
        quantise_blocks(dit)
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
        if isinstance(loaded, Fp8Linear):
            blocks.store(name.replace(".weight", ".scale"), loaded.scale)
            loaded = loaded.weight
        assert isinstance(loaded, Tensor)
        blocks.store(name, loaded)

    for _ in weights.read_all(held, parallel.device, store):
        pass
    return dit.eval()
