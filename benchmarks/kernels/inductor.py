"""Read off what Inductor makes of a function: its kernels, what they move, and their code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import config as inductor
from torch._inductor.graph import GraphLowering

KERNEL = re.compile(r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)'''", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Schedule:
    """What Inductor would run.

    Attributes:
        num_products: the number of matrix products, which a library computes.
        moved_bytes: for each kernel between the products, what it reads and writes.
        code: the Triton code of each different kernel, by its name.
    """

    num_products: int
    moved_bytes: tuple[int, ...]
    code: dict[str, str]


class _Known(Exception):
    """All that is wanted is known, and nothing is to be run."""


def schedule(function: Any, arguments: Sequence[Any], *, with_code: bool = True) -> Schedule:  # noqa: ANN401 any function
    """Return the schedule of a function for arguments of some device. Without code, no compiler is needed."""
    nodes: list[tuple[bool, int]] = []
    written: list[str] = []

    def read_off(scheduled: list[Any]) -> list[Any]:
        nodes.extend((node.is_extern(), node.get_read_write_buffers_sizes()) for node in scheduled)
        if not with_code:
            raise _Known
        return scheduled

    def write(graph: GraphLowering) -> None:
        written.append(graph.codegen()[0].value)
        raise _Known

    changes = {"_post_fusion_custom_pass": read_off, "force_disable_caches": True, "compile_threads": 1}
    torch.compiler.reset()
    with inductor.patch(changes), patch.object(GraphLowering, "compile_to_module", write):
        try:
            torch.compile(function, fullgraph=True, dynamic=False)(*arguments)
        except BackendCompilerFailed as failed:
            if not isinstance(failed.inner_exception, _Known):
                raise
    kernels = {name: code.replace("\\'''", "'''") for code in written for name, code in KERNEL.findall(code)}
    moved = tuple(size for is_product, size in nodes if not is_product and size)
    return Schedule(sum(is_product for is_product, _ in nodes), moved, kernels)
