"""How every stage of training is called, and how it is stopped and goes on.

Each stage is `python -m training.NAME RUN CHECKPOINT`: it keeps its state and its log in `RUN/NAME`, goes
on from there when it is called again, and writes its part of the checkpoint at the end.
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
class Stage:
    """What a stage is told: where it keeps its state, what it adds to, how long and on what it trains."""

    name: str
    run: Path
    checkpoint: Path
    steps: int
    device: torch.device

    @property
    def folder(self) -> Path:
        """Where this stage keeps its state."""
        return self.run / self.name


def stage(name: str, description: str | None, steps: int) -> Stage:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return Stage(name, options.run, options.checkpoint, options.steps, options.device)


class Part(Protocol):
    """Something with a state: a module, an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Be as it was."""
        ...


class Run:
    """A training run in a folder: `state.pt`, and `log.jsonl` with the seconds that it took."""

    def __init__(self, folder: Path, parts: Mapping[str, Part]) -> None:
        """Go on from the folder's state, if there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.parts = folder, parts
        self.step, self.seconds = 0, 0.0
        self._began = self._saved = time.monotonic()
        if (folder / "state.pt").exists():
            self._load()

    def log(self, **values: float) -> None:
        """Append one line, with the step and the seconds trained so far."""
        line = {"step": self.step, "seconds": round(self._elapsed_s(), 1), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def advance(self) -> None:
        """One step is done; save if it is time."""
        self.step += 1
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the state; a reader sees all of it or nothing."""
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
