"""What all training stages have in common: the command line, and saving and resuming.

A stage is called as `python -m training.NAME RUN CHECKPOINT`. It keeps its state and log in `RUN/NAME`,
resumes from there when it is called again, and writes its part of the checkpoint at the end.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class StageOptions:
    """Hold the command line of a stage: run and checkpoint folders, number of steps, device."""

    name: str
    run: Path
    checkpoint: Path
    steps: int
    device: torch.device

    @property
    def folder(self) -> Path:
        """Return the folder for the state and log of this stage."""
        return self.run / self.name


def parse_options(name: str, description: str | None, steps: int) -> StageOptions:
    """Parse the command line and set the number of torch threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return StageOptions(name, arguments.run, arguments.checkpoint, arguments.steps, arguments.device)


class Stateful(Protocol):
    """Declare what a run can save: a module, an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Restore a state."""
        ...


class TrainingRun:
    """Save and resume the training in a folder: `state.pt`, and `log.jsonl` with the elapsed seconds."""

    def __init__(self, folder: Path, parts: Mapping[str, Stateful]) -> None:
        """Resume from the state in the folder, if there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.parts = folder, parts
        self.step, self.seconds = 0, 0.0
        self._began = self._saved = time.monotonic()
        if (folder / "state.pt").exists():
            self._load()

    def log(self, **values: float) -> None:
        """Append a line with the step, the seconds trained so far, and these values."""
        line = {"step": self.step, "seconds": round(self._elapsed_s(), 1), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def advance(self) -> None:
        """Count a finished step, and save once a minute."""
        self.step += 1
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the state atomically."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        beside = self.folder / "state.part"
        torch.save({"step": self.step, "seconds": self._elapsed_s(), **states}, beside)
        beside.replace(self.folder / "state.pt")
        self._saved = time.monotonic()

    def _load(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.step, self.seconds = state.pop("step"), state.pop("seconds")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def _elapsed_s(self) -> float:
        return self.seconds + time.monotonic() - self._began
