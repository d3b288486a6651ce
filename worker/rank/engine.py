"""Define what a rank needs of a model. `worker.rank.model_engine` is the real one; tests stage faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from jobs.capability import Capability
from model.parallel.mesh import ContextParallel
from model.pipeline.events import Event
from worker.messages import RunJob


@dataclass(frozen=True)
class InputsRead:
    """The leader has read the files of the order. The model has not run yet."""


class Engine(Protocol):
    """Generate videos, in step with the engines of the other ranks."""

    @property
    def capability(self) -> Capability:
        """Return what the engine can generate."""

    def on(self, parallel: ContextParallel) -> Self:
        """Return an engine with the same weights that generates with other ranks. Raises GroupError."""

    def generate(self, run: RunJob) -> Iterator[InputsRead | Event]:
        """Yield the events of one job, `InputsRead` first. The device has finished what an event says."""

    def release_memory(self) -> None:
        """Release the memory of a job that did not end regularly."""
