"""What the compiler makes of a block: how many kernels, and what they move, without running or building one.

`benchmarks.counts` asks. The parts of `model.transformer.block` are traced at full size and scheduled by
Inductor for the device at hand; before code is written the schedule is read off and all is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import config as inductor

from model.parallel.mesh import ContextParallel
from model.transformer.block import Block
from model.transformer.config import DitConfig
from model.transformer.token_layout import Layout, Window, build_layout

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Kernels:
    """Of one block between the attentions: matrix products, and the kernels between those."""

    products: int
    fused: int
    moved_bytes: int  # each kernel reads its inputs and writes its outputs once


class _Scheduled(Exception):
    """The schedule is known, and that is all that was wanted."""


def compiled_block(config: DitConfig, window: Window, device: torch.device) -> Kernels:
    """Return the compiled parts of a block, on one rank, in bf16. Weights and tokens have no data."""
    layout = build_layout(config, window, False, ContextParallel(device=device))
    nodes = [node for part, *given in _calls(config, layout, device) for node in _schedule(part, given)]
    between = [size for is_product, size in nodes if not is_product and size]
    return Kernels(sum(is_product for is_product, _ in nodes), len(between), sum(between))


def _calls(config: DitConfig, layout: Layout, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Return the parts and their arguments, without condition frames."""
    with torch.device("meta"):
        block = Block(config, BF16).requires_grad_(False)
    block.to_empty(device=device)
    shape = (1, layout.num_groups, layout.group_size)
    x = torch.empty(*shape, config.hidden_size, dtype=BF16, device=device)
    heads = torch.empty(*shape, config.num_heads, config.head_dim, dtype=BF16, device=device)
    vectors = torch.empty(1, layout.num_groups, 1, 6 * config.hidden_size, device=device).chunk(6, -1)
    yield block.before_attention, x, vectors[0], vectors[1], layout.rotation
    yield block.between_attentions, x, vectors[2], heads, 0
    yield block.after_attentions, x, heads, *vectors[3:]


def _schedule(part: Any, given: list[Tensor | int]) -> list[tuple[bool, int]]:  # noqa: ANN401
    """For each kernel, whether it is a matrix product, and the bytes that it reads and writes."""
    found: list[tuple[bool, int]] = []

    def read_off(nodes: list[Any]) -> list[Any]:
        found.extend((node.is_extern(), node.get_read_write_buffers_sizes()) for node in nodes)
        raise _Scheduled

    changes = {"_post_fusion_custom_pass": read_off, "force_disable_caches": True}
    with inductor.patch(changes):
        try:
            torch.compile(part, fullgraph=True, dynamic=False)(*given)
        except BackendCompilerFailed as left:
            if not isinstance(left.inner_exception, _Scheduled):
                raise
    return found
