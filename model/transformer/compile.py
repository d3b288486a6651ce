"""Compile the parts of a block around its attentions into a few kernels between the matrix products.

A part is compiled once for all blocks, and for each shape of its inputs, so that the result of a shape does
not depend on the shapes before it. Where compilation fails, the plain code runs. Attention and communication
are not compiled.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from model.transformer.dit import Dit

logger = logging.getLogger(__name__)

Compile = Literal["auto", "on", "off"]
Part = Callable[..., Any]
OnFallback = Callable[[str], object]

MAX_SHAPES = 64  # limit on the shapes that are compiled for; further ones run the plain code


def fuse(dit: Dit, wanted: Compile, on_fallback: OnFallback | None = None) -> bool:
    """Replace the parts of all blocks by compiled ones, unless `wanted` is off, or auto and not on CUDA.

    A part is compiled when it is first called. `on_fallback` is called with the name of a part whenever its
    plain code runs because compilation failed. Return whether the parts were replaced.
    """
    if wanted == "off" or (wanted == "auto" and not dit.x_embedder.proj.weight.is_cuda):
        return False
    torch._dynamo.config.recompile_limit = MAX_SHAPES  # noqa: SLF001 there is no public setting
    failed: set[object] = set()
    for block in dit.blocks:
        for part in (block.before_attention, block.between_attentions, block.after_attentions):
            setattr(block, part.__name__, _compiled(part, failed, on_fallback))
    return True


def _compiled(plain: Part, failed: set[object], on_fallback: OnFallback | None) -> Part:
    """Return the compiled part, which runs the plain one for shapes that failed to compile."""
    compiled = torch.compile(plain, fullgraph=True, dynamic=False)

    def part(x: Tensor, *rest: object) -> object:
        shape = (plain.__name__, x.shape)
        if shape not in failed:
            try:
                return compiled(x, *rest)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                failed.add(shape)
                logger.warning("%s%s is not compiled: %s", plain.__name__, list(x.shape), error)
        if on_fallback:
            on_fallback(plain.__name__)
        return plain(x, *rest)

    return part
