"""Train low-rank updates of a transformer and save them as LongCat-Video's LoRA files.

`training.distil` and `training.refine` attach them, train nothing else, and save what
`model.transformer.lora` reads.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from model.io.lora_files import PREFIX, SEPARATOR
from model.transformer.lora import ALPHA, DOWN
from training.optimiser import ADAM_BETAS, learning_rate
from training.stage import StageOptions, TrainingRun

RANK, SCALE = 16, 1.0
LEARNING_RATE, SEED, LOG_EVERY = 1e-3, 11, 10
MODULES = ("qkv", "proj", "q_linear", "kv_linear", "w1", "w2", "w3")
FUSED_PROJECTIONS = {"qkv": 3, "kv_linear": 2}  # each part of a fused projection has an update of its own


class LowRankUpdate(nn.Module):
    """Add scale · up_i · down_i to each block i of the rows of a weight. The update is zero at first."""

    def __init__(self, weight: Float[Tensor, "out in"], blocks: int) -> None:
        super().__init__()
        out, inner = weight.shape
        self.down = nn.Parameter(torch.randn(blocks * RANK, inner) * inner**-0.5)
        self.up = nn.Parameter(torch.zeros(blocks, out // blocks, RANK))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Return the updated weight."""
        blocks = self.up.shape[0]
        return weight + SCALE * (self.up @ self.down.unflatten(0, (blocks, RANK))).flatten(0, 1)


def attach(dit: nn.Module) -> nn.ModuleDict:
    """Freeze a transformer, add trainable low-rank updates to its blocks, and return the updates."""
    dit.requires_grad_(False)
    updates = {}
    for path, module in list(dit.named_modules()):
        kind = path.rpartition(".")[2]
        if path.startswith("blocks.") and isinstance(module, nn.Linear) and kind in MODULES:
            update = LowRankUpdate(module.weight, FUSED_PROJECTIONS.get(kind, 1))
            parametrize.register_parametrization(module, "weight", update)
            updates[path.replace(".", SEPARATOR)] = update
    return nn.ModuleDict(updates)


def train(
    options: StageOptions, updates: nn.ModuleDict, loss_of: Callable[[np.random.Generator], Tensor]
) -> None:
    """Train the updates only, resuming where the last run stopped."""
    optimiser = torch.optim.Adam(updates.parameters(), lr=LEARNING_RATE, betas=ADAM_BETAS)
    run = TrainingRun(options.folder, {"changes": updates, "optimiser": optimiser})
    while run.step < options.steps:
        loss = loss_of(np.random.default_rng((SEED, run.step)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * learning_rate(run.step, options.steps)
        optimiser.step()
        if run.step % LOG_EVERY == 0:
            run.log(loss=loss.item())
        run.advance()
    run.save()


def save(updates: nn.ModuleDict, path: Path) -> None:
    """Write the updates as a LoRA file."""
    tensors: dict[str, Tensor] = {}
    for module, update in updates.items():
        key = f"{PREFIX}{module}"
        assert isinstance(update, LowRankUpdate)
        tensors[f"{key}.{DOWN}"] = update.down.detach()
        tensors[f"{key}.{ALPHA}"] = torch.tensor(SCALE)
        blocks = list(update.up.detach())
        names = (
            ["lora_up.weight"]
            if len(blocks) == 1
            else [f"lora_up.blocks.{i}.weight" for i in range(len(blocks))]
        )
        tensors |= {f"{key}.{name}": block.contiguous() for name, block in zip(names, blocks, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
