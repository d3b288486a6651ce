"""Load the transformer from a checkpoint: onto the device, into host memory, or sharded over ranks."""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from model.io.checkpoint import Convert, Weights, load_module, load_tensors
from model.io.lora_files import lora_files
from model.parallel.mesh import ContextParallel
from model.parallel.sharded_blocks import ShardedBlocks
from model.spec.memory import Quantize
from model.transformer.block import Block
from model.transformer.config import load_dit_config
from model.transformer.dit import Dit
from model.transformer.flat_blocks import FlatBlocks
from model.transformer.lora import LoraMerger, WeightMemory, read_lora
from model.transformer.quantise import choose_layer, quantise_blocks, quantise_when_loaded
from model.transformer.quantised_linear import QuantisedLinear
from model.transformer.streamed_blocks import StreamedBlocks

BLOCKS = "blocks"


def load_transformer(  # noqa: PLR0913 - options by name
    checkpoint: Path,
    dtype: torch.dtype,
    parallel: ContextParallel,
    *,
    quantize: Quantize = "none",
    stream_weights: bool = False,
    memory: WeightMemory | None = None,
    loras: Collection[str] | None = None,
) -> tuple[Dit, LoraMerger]:
    """Load the transformer onto this rank's device, and the LoRAs that can be merged into it.

    With `stream_weights`, the weights of the blocks stay in the memory of the host: in `memory` if that can
    take them, else in a copy of this rank. Processes with the same memory read them only once together. Where
    the group shards weights, a rank reads only the tensors of which it holds a part.

    Args:
        checkpoint: the folder of the checkpoint.
        dtype: the type of weights and activations.
        parallel: this rank and its group.
        quantize: how the large matrices are stored.
        stream_weights: whether the weights of the blocks stay in the memory of the host.
        memory: memory for weights that the processes of this machine share.
        loras: the LoRAs that can be merged; None for all of the checkpoint.

    Raises:
        CheckpointError: a tensor is missing or has the wrong shape, or a file cannot be read.
        GroupError: the attention heads do not divide evenly among the ranks.
        DeviceError: the device does not multiply matrices that are stored so, or cannot lock host memory.
    """
    config = load_dit_config(checkpoint / "dit" / "config.json")
    parallel.check_heads(config.num_heads)
    layer = choose_layer(quantize, parallel, dtype, config)
    weights = Weights(checkpoint / "dit", "diffusion_pytorch_model")
    build = partial(Dit, config, dtype)
    convert = quantise_when_loaded(layer, config.depth)
    if parallel.weights_group is None and not stream_weights:
        dit = load_module(build, weights, parallel.device, convert)
        merger = _merger(checkpoint, dit, weights, loras)
        if memory:
            merger.prepare(memory)
        return dit, merger

    with torch.device("meta"):
        dit = build()
    wanted = dit.state_dict(keep_vars=True)
    weights.check_names(wanted)
    quantise_blocks(dit, layer)
    blocks: FlatBlocks[Block]
    if stream_weights:
        blocks = StreamedBlocks(BLOCKS, dit.blocks, parallel.device)
    else:
        assert parallel.weights_group is not None
        blocks = ShardedBlocks(BLOCKS, dit.blocks, parallel.weights_group, parallel.device)
    dit.block_weights = blocks
    outside = {name: tensor for name, tensor in wanted.items() if not name.startswith(f"{BLOCKS}.")}
    load_tensors(dit, outside, weights, parallel.device)
    merger = _merger(checkpoint, dit, weights, loras)
    is_prepared = memory is not None and merger.prepare(memory)
    if isinstance(blocks, StreamedBlocks):
        if is_prepared:
            return dit.eval(), merger
        blocks.keep_copies()
    inside = {name: wanted[name] for name in wanted.keys() - outside}
    _load_blocks(blocks, inside, weights, parallel.device, convert)
    return dit.eval(), merger


def _load_blocks(
    blocks: FlatBlocks[Block],
    wanted: Mapping[str, Tensor],
    weights: Weights,
    device: torch.device,
    convert: Convert | None,
) -> None:
    """Load what this rank holds of the blocks. `wanted` has their tensors as they are in the files."""
    held = {name: tensor for name, tensor in wanted.items() if blocks.holds(name.rpartition(".")[0])}

    def store(name: str, tensor: Tensor) -> None:
        loaded = convert(name, tensor) if convert else tensor
        if isinstance(loaded, QuantisedLinear):
            blocks.store(name.replace(".weight", ".scale"), loaded.scale)
            loaded = loaded.weight
        assert isinstance(loaded, Tensor)
        blocks.store(name, loaded)

    for _ in weights.read_all(held, device, store):
        pass


def _merger(checkpoint: Path, dit: Dit, weights: Weights, loras: Collection[str] | None) -> LoraMerger:
    """Read which weights these LoRAs of a checkpoint change, or all of them. Raises CheckpointError."""
    files = lora_files(checkpoint)
    wanted = files if loras is None else files.keys() & loras
    return LoraMerger(dit, weights, {name: read_lora(files[name], dit) for name in sorted(wanted)})
