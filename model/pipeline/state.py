"""Save and restore the state of a job after any step, so that it can resume on any number of ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor

from model.io.checkpoint import open_safetensors
from model.spec.errors import CheckpointError, InputError

Stage = Literal["denoise", "refine"]

FILE_VERSION = 1
"""The newest version of state files that this release reads, and the one that it writes."""


@dataclass(frozen=True)
class State:
    """The state of a job: with its request, all that is needed to resume.

    Attributes:
        segment: the segment that is being generated.
        stage: its current stage.
        step: number of steps of the stage that are done.
        random: state of the job's generator of random numbers.
        latents: the noise frames after these steps; None before the stage begins.
        clean: the condition frames of the stage; None before the stage begins.
        tail: the last frames of the previous segment or, during refinement, of this segment's base video.
            Floats in [0, 1], on the CPU of the leader alone.
        refined_tail: the last frames of the previous refined segment.
    """

    segment: int
    stage: Stage
    step: int
    random: UInt8[Tensor, " bytes"]
    latents: Float[Tensor, "1 z f h w"] | None = None
    clean: Float[Tensor, "1 z clean_f h w"] | None = None
    tail: Float[Tensor, "frames height width 3"] | None = None
    refined_tail: Float[Tensor, "refined_frames refined_height refined_width 3"] | None = None

    @classmethod
    def begin(cls, seed: int) -> "State":
        """Return the state before the first random number of a CPU generator with this seed."""
        return cls(0, "denoise", 0, torch.Generator().manual_seed(seed).get_state())

    def stage_latents(self) -> tuple[Float[Tensor, "1 z f h w"], Float[Tensor, "1 z clean_f h w"]]:
        """Return noise frames and condition frames. The stage must have begun."""
        assert self.latents is not None
        assert self.clean is not None
        return self.latents, self.clean

    def generator(self) -> torch.Generator:
        """Return a CPU generator in the saved state."""
        generator = torch.Generator()
        generator.set_state(self.random.cpu())
        return generator

    def save(self, path: Path) -> None:
        """Write a safetensors file atomically."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        tensors = {
            name: value.contiguous().cpu() for name, value in values.items() if isinstance(value, Tensor)
        }
        plain = {name: str(values[name]) for name in ("segment", "stage", "step")}
        plain["schema_version"] = str(FILE_VERSION)
        partial_file = path.with_name(f"{path.name}.part")
        save_file(tensors, partial_file, metadata=plain)
        partial_file.replace(path)

    @classmethod
    def load(cls, path: Path) -> "State":
        """Read a file that `save` of this or another release wrote. Raises InputError."""
        try:
            with open_safetensors(path) as file:
                plain = file.metadata() or {}
                _check_version(plain)
                known = {entry.name for entry in fields(cls)}.intersection(file.keys())
                tensors = {name: file.get_tensor(name) for name in known}
            stage: Stage = "refine" if plain["stage"] == "refine" else "denoise"
            return cls(int(plain["segment"]), stage, int(plain["step"]), **tensors)
        except (CheckpointError, KeyError, ValueError, TypeError) as error:
            raise InputError("state", f"{path} is not a saved state: {error}") from error


def _check_version(metadata: Mapping[str, str]) -> None:
    version = int(metadata.get("schema_version", 1))
    if version > FILE_VERSION:
        raise ValueError(f"version {version} is later than {FILE_VERSION}")
