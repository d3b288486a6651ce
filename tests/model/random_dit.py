"""A small transformer in whose result every weight has a part."""

from __future__ import annotations

import torch

from model.transformer.config import DitConfig
from model.transformer.dit import Dit


def random_dit(config: DitConfig, dtype: torch.dtype = torch.float32) -> Dit:
    """Return a transformer with the same random weights at each call. A new one has weights of zero."""
    dit = Dit(config, dtype).requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in dit.named_parameters():
        values = torch.randn(parameter.shape, generator=draw)
        if parameter.ndim > 1:
            values *= (parameter.numel() / parameter.shape[0]) ** -0.5
        elif name.endswith("bias"):
            values *= 0.1
        else:
            values = 1 + 0.1 * values
        parameter.copy_(values)
    return dit
