"""List what is compiled: the three parts of a block, at the shapes of real forwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.formulas import BASE, REFINED
from model.parallel.mesh import ContextParallel
from model.spec.memory import Quantize
from model.transformer.block import Block
from model.transformer.config import DitConfig
from model.transformer.quantise import LAYERS, quantise_block
from model.transformer.token_layout import Layout, Window, build_layout

BF16 = torch.bfloat16
CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Shape:
    """The tokens of a forward on one rank.

    Attributes:
        window: the latent frames.
        num_texts: 2 with guidance, if one rank predicts for both texts.
        ranks: the number of ranks that divide the tokens.
        sparse: whether attention is block-sparse, which orders the tokens in other groups.
    """

    window: Window
    num_texts: int = 1
    ranks: int = 1
    sparse: bool = False


SHAPES = {
    "480p": Shape(BASE),
    "480p, guided": Shape(BASE, num_texts=2),
    "480p, 8 ranks": Shape(BASE, ranks=8),
    "480p, image": Shape(BASE._replace(num_condition=1)),
    "720p, refined": Shape(REFINED, sparse=True),
}


@dataclass(frozen=True)
class Part:
    """A part of a block with its arguments, which have no data.

    Attributes:
        name: the name of the method of `Block`.
        call: the method.
        arguments: what it is called with.
        pass_bytes: the size of all tokens at the whole width in the dtype of the model.
    """

    name: str
    call: Any
    arguments: tuple[Tensor | int, ...]
    pass_bytes: int


def parts(shape: Shape, quantize: Quantize) -> Iterator[Part]:
    """Yield the parts of a block. Call it within a FakeTensorMode, after `pretend`."""
    config = DitConfig()
    layout = build_layout(config, shape.window, ContextParallel(size=shape.ranks), sparse=shape.sparse)
    yield from block_parts(_block(config, quantize), config, layout, shape.num_texts, CUDA)


def block_parts(
    block: Block, config: DitConfig, layout: Layout, num_texts: int, device: torch.device
) -> Iterator[Part]:
    """Yield the parts of a block with arguments on a device, which are not initialised."""
    groups, tokens = layout.rotation.shape[:2]
    num_condition = layout.num_condition_groups
    heads = (config.num_heads, config.head_dim)
    x = torch.empty(num_texts, groups, tokens, config.hidden_size, dtype=BF16, device=device)
    attention = torch.empty(num_texts, groups, tokens, *heads, dtype=BF16, device=device)
    text = torch.empty(num_texts, groups - num_condition, tokens, *heads, dtype=BF16, device=device)
    vectors = torch.empty(num_texts, groups, 1, 6 * config.hidden_size, device=device).chunk(6, -1)
    rotation = torch.empty(layout.rotation.shape, device=device)
    for call, arguments in (
        (block.before_attention, (x, vectors[0], vectors[1], rotation)),
        (block.between_attentions, (x, vectors[2], attention, num_condition)),
        (block.after_attentions, (x, text, *vectors[3:])),
    ):
        yield Part(call.__name__, call, arguments, x.nbytes)


def fake_tensors() -> FakeTensorMode:
    """Return the mode in which tensors have a device and a shape, but no data."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _block(config: DitConfig, quantize: Quantize) -> Block:
    with torch.device("meta"):
        block = Block(config, BF16).requires_grad_(False)
        quantise_block(block, LAYERS.get(quantize))
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight = nn.Parameter(_empty(*parameter.shape, dtype=parameter.dtype), requires_grad=False)
            setattr(module, name, weight)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, _empty(*buffer.shape, dtype=buffer.dtype))
    return block


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=CUDA)
