"""What a rank runs, as a small Protocol: the model follows it, and so do the faults that tests stage.

`worker.rank.main` keeps one, `worker.rank.run_job` iterates over what it generates.
`worker.rank.model_engine` is the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from jobs.capability import Capability
from model.pipeline.events import Event
from worker.messages import RunJob


@dataclass(frozen=True)
class Begun:
    """The order's files are read: nothing of the model has run yet, and every rank is here."""


class Engine(Protocol):
    """Generates videos, in step with the engines of the other ranks."""

    @property
    def capability(self) -> Capability:
        """What may be ordered from it."""

    def generate(self, run: RunJob) -> Iterator[Begun | Event]:
        """The events of one job, first `Begun`; each means that the device has done that much."""

    def tidy(self) -> None:
        """Give back what a job that failed or was left may still hold."""
