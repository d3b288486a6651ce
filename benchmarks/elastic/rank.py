"""Run a rank whose steps last at least as long as `benchmarks.elastic.pace` says; the real engine computes.

`LONGCAT_RANK_MODULE` names this module. In the checkpoint folder, `time_scale` contains how many seconds
stand for one of LongCat-Video, `latents/JOB-SEGMENT-STAGE.safetensors` gets the latents of each stage, and
`events.jsonl` a line for each step and decode, with the number of ranks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.elastic import pace
from jobs.capability import Capability
from model.parallel.mesh import ContextParallel
from model.pipeline.events import Encoded, Event, Latents, SegmentDone, Stepped
from worker.messages import RunJob
from worker.rank import main as rank
from worker.rank.engine import Engine, InputsRead
from worker.rank.model_engine import load_engine
from worker.settings import RankSetup


class PacedEngine:
    """Generate videos with another engine, whose steps and decodes are prolonged on the leader.

    The other ranks wait for it after each event.
    """

    def __init__(self, engine: Engine, folder: Path, time_scale: float, parallel: ContextParallel) -> None:
        self._engine = engine
        self._folder = folder
        self._time_scale = time_scale
        self._parallel = parallel

    def on(self, parallel: ContextParallel) -> PacedEngine:
        """Return an engine with the same weights that generates with other ranks. Raises GroupError."""
        return PacedEngine(self._engine.on(parallel), self._folder, self._time_scale, parallel)

    @property
    def capability(self) -> Capability:
        """Return what the engine can generate."""
        return self._engine.capability

    def generate(self, run: RunJob) -> Iterator[InputsRead | Event]:
        """Yield the events of one job, none of them early."""
        plan, width = run.order.plan, self._parallel.size
        with closing(self._engine.generate(run)) as events:  # type: ignore[type-var]
            began_s, decoding = time.monotonic(), "denoise"
            for event in events:
                match event:
                    case Stepped(stage=stage, num_steps=num_steps):
                        self._prolong(run, event, began_s, pace.step_s(plan, stage, num_steps, width))
                    case Latents(stage=stage, segment=segment, latents=latents):
                        decoding = stage
                        if self._parallel.is_leader:
                            file = self._folder / "latents" / f"{run.job_id}-{segment}-{stage}.safetensors"
                            save_file({"latents": latents.contiguous()}, file)
                    case Encoded(stage="refine") | SegmentDone():
                        self._prolong(run, event, began_s, pace.decode_s(plan, decoding, width))
                yield event
                if isinstance(event, Encoded | Stepped | Latents):
                    began_s = time.monotonic()

    def release_memory(self) -> None:
        """Release the memory of a job that did not end regularly."""
        self._engine.release_memory()

    def _prolong(self, run: RunJob, event: Event, began_s: float, lasts_s: float) -> None:
        """Wait on the leader until the event has lasted long enough, and log it."""
        if not self._parallel.is_leader:
            return
        computed_s, paced_s = time.monotonic() - began_s, lasts_s * self._time_scale
        time.sleep(max(0.0, paced_s - computed_s))
        line = {
            "job": run.job_id,
            "kind": type(event).__name__,
            "width": self._parallel.size,
            "at_s": time.time(),
            "computed_s": computed_s,
            "paced_s": paced_s,
        }
        with (self._folder / "events.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")


def load(setup: RankSetup, parallel: ContextParallel) -> PacedEngine:
    """Load the real engine."""
    time_scale = float((setup.checkpoint / "time_scale").read_text())
    return PacedEngine(load_engine(setup, parallel), setup.checkpoint, time_scale, parallel)


if __name__ == "__main__":
    rank.main(sys.argv[1], load)
