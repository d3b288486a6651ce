"""Load the transformer from a checkpoint: whole, or one shard of it on each rank of a group."""

from functools import partial

import torch
from torch import Tensor

from model.io.checkpoint import Weights, load_module, load_tensors
from model.parallel.mesh import ContextParallel
from model.parallel.sharded_blocks import ShardedBlocks
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.fp8 import Fp8Linear, check_device, quantise_blocks, quantise_when_loaded

BLOCKS = "blocks"


def load_dit(
    config: DitConfig, dtype: torch.dtype, weights: Weights, parallel: ContextParallel, *, fp8: bool = False
) -> Dit:
    """Load the transformer onto this rank's device, with its large matrices in fp8 if `fp8` is set.

    Where the group shards weights, a rank reads only the tensors of which it holds a part.

    Raises:
        CheckpointError: a tensor is missing or has the wrong shape, or a file cannot be read.
        DeviceError: the device does not support fp8.
    """
    if fp8:
        check_device(parallel.device, dtype)
    build = partial(Dit, config, dtype)
    if parallel.weights_group is None:
        convert = quantise_when_loaded(config.depth) if fp8 else None
        return load_module(build, weights, parallel.device, convert)

    with torch.device("meta"):
        dit = build()
    wanted = dit.state_dict(keep_vars=True)
    weights.check_names(wanted)
    if fp8:
        quantise_blocks(dit)
    sharded = ShardedBlocks(BLOCKS, dit.blocks, parallel.weights_group, parallel.device)
    dit.block_weights = sharded
    outside = {name: tensor for name, tensor in wanted.items() if not name.startswith(f"{BLOCKS}.")}
    load_tensors(dit, outside, weights, parallel.device)
    held = {name: wanted[name] for name in wanted.keys() - outside if sharded.holds(name.rpartition(".")[0])}
    quantise = quantise_when_loaded(config.depth)

    def store(name: str, tensor: Tensor) -> None:
        loaded = quantise(name, tensor) if fp8 else tensor
        if isinstance(loaded, Fp8Linear):
            sharded.store(name.replace(".weight", ".scale"), loaded.scale)
            loaded = loaded.weight
        assert isinstance(loaded, Tensor)
        sharded.store(name, loaded)

    for _ in weights.read_all(held, parallel.device, store):
        pass
    return dit.eval()
