"""Where a job stands, so that it can be saved after any step and go on, on any number of ranks.

`model.pipeline` hands one out with each step and each finished segment, and takes one back to resume.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor

from model.io.checkpoint import opened
from model.spec.errors import CheckpointError, InputError

Stage = Literal["denoise", "refine"]


@dataclass(frozen=True)
class State:
    """What is needed to go on from here, beside the request itself.

    `step` steps of this stage of this segment are done, and `latents` are its noise frames after them,
    `clean` its condition frames; both None before the stage begins. `random` is the state of the job's
    generator. `tail` and `refined_tail` (floats in [0, 1], on the leader alone) are the end of the
    segment before, or of this segment's base video while it is refined.
    """

    segment: int
    stage: Stage
    step: int
    random: UInt8[Tensor, " bytes"]
    latents: Float[Tensor, "1 z f h w"] | None = None
    clean: Float[Tensor, "1 z k h w"] | None = None
    tail: Float[Tensor, "n height width 3"] | None = None
    refined_tail: Float[Tensor, "m height2 width2 3"] | None = None

    @classmethod
    def begin(cls, seed: int) -> "State":
        """Before the first draw from a generator on the CPU with this seed."""
        return cls(0, "denoise", 0, torch.Generator().manual_seed(seed).get_state())

    def of_stage(self) -> tuple[Float[Tensor, "1 z f h w"], Float[Tensor, "1 z k h w"]]:
        """Noise frames and condition frames of a stage that has begun."""
        assert self.latents is not None
        assert self.clean is not None
        return self.latents, self.clean

    def generator(self) -> torch.Generator:
        """The job's generator as it stands, on the CPU."""
        generator = torch.Generator()
        generator.set_state(self.random.cpu())
        return generator

    def save(self, path: Path) -> None:
        """Write one safetensors file; a reader sees all of it or nothing."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        tensors = {
            name: value.contiguous().cpu() for name, value in values.items() if isinstance(value, Tensor)
        }
        plain = {name: str(values[name]) for name in ("segment", "stage", "step")}
        beside = path.with_name(f"{path.name}.part")
        save_file(tensors, beside, metadata=plain)
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> "State":
        """Read what `save` wrote. Raises InputError."""
        try:
            with opened(path) as file:
                plain = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stage: Stage = "refine" if plain["stage"] == "refine" else "denoise"
            return cls(int(plain["segment"]), stage, int(plain["step"]), **tensors)
        except (CheckpointError, KeyError, ValueError, TypeError) as error:
            raise InputError("state", f"{path} is no saved state: {error}") from error
