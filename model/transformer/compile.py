"""The parts of a block around its attentions, compiled: a few kernels between the matrix products.

Who has loaded a pipeline calls `fuse` on its transformer, and `warm` before the first job. A part is
compiled whole, once for all blocks and for each shape of tokens: what a shape gives never depends on which
shapes came before. The plain code of `model.block` stays the definition; it also runs where there is no
compiler. Attention itself, and all that devices say to one another, stays outside.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from model.parallel.mesh import ContextParallel
from model.spec.geometry import VAE_STRIDE, latent_frames
from model.spec.plan import Plan
from model.transformer.dit import Dit
from model.transformer.token_layout import Window, lay_out

logger = logging.getLogger(__name__)

Compile = Literal["auto", "on", "off"]
Part = Callable[..., Any]

MAX_SHAPES = 64  # of tokens that are compiled for; any more run as they stand
WARM_TEXTS = (1, 2)  # without guidance and with it


def fuse(dit: Dit, wanted: Compile) -> bool:
    """Have the parts of all blocks compiled when they are met, and say so; `auto` means on CUDA alone."""
    if wanted == "off" or (wanted == "auto" and not dit.x_embedder.proj.weight.is_cuda):
        return False
    torch._dynamo.config.recompile_limit = MAX_SHAPES  # noqa: SLF001 it can be said in no other way
    refused: set[object] = set()
    for block in dit.blocks:
        for part in (block.before, block.between, block.after):
            setattr(block, part.__name__, _fused(part, refused))
    return True


def _fused(plain: Part, refused: set[object]) -> Part:
    """The same, compiled; as it stands for the shapes that are refused."""
    compiled = torch.compile(plain, fullgraph=True, dynamic=False)

    def part(x: Tensor, *rest: object) -> object:
        shape = (plain.__name__, x.shape)
        if shape not in refused:
            try:
                return compiled(x, *rest)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                refused.add(shape)
                logger.warning("%s%s runs as it stands: %s", plain.__name__, list(x.shape), error)
        return plain(x, *rest)

    return part


def warm(dit: Dit, plan: Plan, num_text_tokens: int, parallel: ContextParallel) -> None:
    """Compile for the shapes of a plan before a job has to wait for it; on all ranks at once."""
    window = Window(latent_frames(plan.num_frames), plan.height // VAE_STRIDE, plan.width // VAE_STRIDE)
    weight = dit.x_embedder.proj.weight
    for num_texts in WARM_TEXTS:
        sharing = parallel.for_texts(num_texts)
        texts = weight.new_zeros(num_texts, num_text_tokens, dit.config.caption_channels)
        text = sharing.share_texts(texts)
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=weight.device)
        noise = weight.new_zeros(len(text), dit.config.in_channels, *window[:3], dtype=torch.float32)
        timesteps = noise.new_full((len(text), window.num_frames), 1000.0)
        dit(noise, timesteps, lay_out(dit.config, window, False, sharing), dit.read(text, mask))
