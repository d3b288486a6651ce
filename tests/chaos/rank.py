"""Run a rank with the real engine and with the faults that a file asks for.

`LONGCAT_RANK_MODULE` names this module. The checkpoint folder holds the files: `steps.log` gets a line for
each event of a job, and `fault-GROUP` names the fault of the next event. The leader reads it and broadcasts
it, so that all ranks have the fault at the same event.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from jobs.capability import Capability
from model.parallel.mesh import ContextParallel
from model.pipeline.events import Event, Stepped
from tests.chaos.orders import POISON
from tests.chaos.steps import StepLog
from worker.messages import RunJob
from worker.rank import main as rank
from worker.rank.engine import Engine, InputsRead
from worker.rank.model_engine import load_engine
from worker.settings import RankSetup

STEP_S = 0.08  # else steps of the small checkpoint are too short for a fault to come during one


class FaultyEngine:
    """Generate videos with another engine, and cause the faults of its group."""

    def __init__(self, engine: Engine, folder: Path, group: str, parallel: ContextParallel) -> None:
        self._engine = engine
        self._folder = folder
        self._parallel = parallel
        self._fault = folder / f"fault-{group}"
        self._log = StepLog(folder / "steps.log")
        self._group = group
        self._rank = parallel.rank

    def on(self, parallel: ContextParallel) -> FaultyEngine:
        return FaultyEngine(self._engine.on(parallel), self._folder, self._group, parallel)

    @property
    def capability(self) -> Capability:
        return self._engine.capability

    def generate(self, run: RunJob) -> Iterator[InputsRead | Event]:
        with closing(self._engine.generate(run)) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Stepped):
                    time.sleep(STEP_S)
                self._log_event(run.job_id, event)
                self._cause_fault(run)
                yield event

    def release_memory(self) -> None:
        self._engine.release_memory()

    def _log_event(self, job_id: str, event: InputsRead | Event) -> None:
        if self._rank == 0:
            place = (event.segment, event.stage, event.step) if isinstance(event, Stepped) else None
            self._log.add(self._group, job_id, place)

    def _cause_fault(self, run: RunJob) -> None:
        if POISON in run.order.prompts[0] and self._rank == self._parallel.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        match self._next_fault(run.job_id).split():
            case ["raises", number]:
                if int(number) % self._parallel.size == self._rank:
                    raise RuntimeError("staged")
                # As in a collective of the model: wait for the rank that failed.
                dist.barrier(self._parallel.group)
            case ["memory"]:
                raise MemoryError
            case ["disk"] if self._rank == 0:
                raise OSError(errno.ENOSPC, "staged")

    def _next_fault(self, job_id: str) -> str:
        words: list[Any] = [""]
        if self._rank == 0:
            with suppress(FileNotFoundError):  # in a world, another leader may be first
                fault = self._fault.read_text()
                self._fault.rename(self._fault.with_suffix(f".{job_id}"))
                words = [fault]
        if self._parallel.size > 1:
            dist.broadcast_object_list(words, group=self._parallel.group, group_src=0)
        return str(words[0])


def load(setup: RankSetup, parallel: ContextParallel) -> FaultyEngine:
    engine = load_engine(setup, parallel)
    return FaultyEngine(engine, setup.checkpoint, setup.socket.parent.name, parallel)


if __name__ == "__main__":
    rank.main(sys.argv[1], load)
