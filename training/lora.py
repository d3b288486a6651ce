"""Low-rank changes while they are trained, and written as LongCat-Video's LoRA files.

`training.distil` and `training.refine` attach them to a transformer, train them alone, and save what
`model.io.lora` reads.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from model.io.lora import ALPHA, DOWN, PREFIX, SEPARATOR
from training.optimiser import ADAM_BETAS, learning_rate
from training.stage import Run, Stage

RANK, SCALE = 16, 1.0
LEARNING_RATE, SEED, LOG_EVERY = 1e-3, 11, 10
MODULES = ("qkv", "proj", "q_linear", "kv_linear", "w1", "w2", "w3")
BLOCKS = {"qkv": 3, "kv_linear": 2}  # fused projections change block by block


class LowRank(nn.Module):
    """A weight plus scale · up_i · down_i for each block i of its rows; nothing at first."""

    def __init__(self, weight: Float[Tensor, "out in"], blocks: int) -> None:
        super().__init__()
        out, inner = weight.shape
        self.down = nn.Parameter(torch.randn(blocks * RANK, inner) * inner**-0.5)
        self.up = nn.Parameter(torch.zeros(blocks, out // blocks, RANK))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The changed weight."""
        blocks = self.up.shape[0]
        return weight + SCALE * (self.up @ self.down.unflatten(0, (blocks, RANK))).flatten(0, 1)


def attach(dit: nn.Module) -> nn.ModuleDict:
    """Freeze a transformer and let low-rank changes of its blocks be trained, which are returned."""
    dit.requires_grad_(False)
    changes = {}
    for path, module in list(dit.named_modules()):
        kind = path.rpartition(".")[2]
        if path.startswith("blocks.") and isinstance(module, nn.Linear) and kind in MODULES:
            change = LowRank(module.weight, BLOCKS.get(kind, 1))
            parametrize.register_parametrization(module, "weight", change)
            changes[path.replace(".", SEPARATOR)] = change
    return nn.ModuleDict(changes)


def train(told: Stage, changes: nn.ModuleDict, loss_of: Callable[[np.random.Generator], Tensor]) -> None:
    """Train the changes alone, resuming where the last run stopped."""
    optimiser = torch.optim.Adam(changes.parameters(), lr=LEARNING_RATE, betas=ADAM_BETAS)
    run = Run(told.folder, {"changes": changes, "optimiser": optimiser})
    while run.step < told.steps:
        loss = loss_of(np.random.default_rng((SEED, run.step)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * learning_rate(run.step, told.steps)
        optimiser.step()
        if run.step % LOG_EVERY == 0:
            run.log(loss=loss.item())
        run.advance()
    run.save()


def save(changes: nn.ModuleDict, path: Path) -> None:
    """Write a LoRA file."""
    tensors: dict[str, Tensor] = {}
    for module, change in changes.items():
        key = f"{PREFIX}{module}"
        assert isinstance(change, LowRank)
        tensors[f"{key}.{DOWN}"] = change.down.detach()
        tensors[f"{key}.{ALPHA}"] = torch.tensor(SCALE)
        blocks = list(change.up.detach())
        names = (
            ["lora_up.weight"]
            if len(blocks) == 1
            else [f"lora_up.blocks.{i}.weight" for i in range(len(blocks))]
        )
        tensors |= {f"{key}.{name}": block.contiguous() for name, block in zip(names, blocks, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
