"""Count the kernels that the compiler makes of a block, and what they move, without running or building one.

`benchmarks.counts` uses it. Inductor traces the parts of `model.transformer.block` at full size and schedules
them for the present device. It is stopped before it writes any code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.kernels.cases import BF16, block_parts
from benchmarks.kernels.inductor import schedule
from model.parallel.mesh import ContextParallel
from model.transformer.block import Block
from model.transformer.config import DitConfig
from model.transformer.token_layout import Window, build_layout


@dataclass(frozen=True)
class Kernels:
    """Of one block between the attentions: matrix products, and the kernels between those."""

    products: int
    fused: int
    moved_bytes: int  # each kernel reads its inputs and writes its outputs once


def compiled_block(config: DitConfig, window: Window, device: torch.device) -> Kernels:
    """Return the compiled parts of a block, on one rank, in bf16. Weights and tokens have no data."""
    layout = build_layout(config, window, ContextParallel(device=device), sparse=False)
    with torch.device("meta"):
        block = Block(config, BF16).requires_grad_(False)
    block.to_empty(device=device)
    found = [
        schedule(part.call, part.arguments, with_code=False)
        for part in block_parts(block, config, layout, 1, device)
    ]
    moved = [size for each in found for size in each.moved_bytes]
    return Kernels(sum(each.num_products for each in found), len(moved), sum(moved))
