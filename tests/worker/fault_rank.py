"""Run a rank whose engine fails as a test asks, in place of `worker.rank.main`. Everything else is real.

The prompt of a job contains instructions such as `step_s=0.1`, the duration of a step. A prompt may cause one
fault, at the second step of the first segment, on one rank or on all: `raises=1`, `dies=0`, `hangs=1`,
`memory=all`. The fault occurs once, or in every attempt with the word `always`. With `starves`, the leader
runs out of memory while it encodes the prompt. With `fits=4`, all ranks do in a step if they are fewer.

In the checkpoint folder, the file `dies_in_setup` contains the number of times that loading fails,
`starves_in_setup` the rank that runs out of memory while it loads, and `steps.log` lists the steps that were
run, with the number of ranks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.capability import Capability
from model.parallel.broadcast import from_leader
from model.parallel.mesh import SINGLE, ContextParallel
from model.pipeline.events import Encoded, Event, Frames, Latents, SegmentDone, Stepped
from model.pipeline.state import State
from model.spec.plan import Plan
from worker.messages import RunJob
from worker.rank import main as rank
from worker.rank.engine import InputsRead
from worker.settings import RankSetup

FAULTS = ("raises", "dies", "hangs", "memory")
FAULTY_STEP = 2
CHUNK_FRAMES = 4
LATENTS = torch.zeros(1, 1, 1, 1, 1)


@dataclass(frozen=True)
class Script:
    """The delays and the fault that a prompt requests."""

    step_s: float = 0.0
    fault: str | None = None
    ranks: str = "all"
    always: bool = False
    starves: bool = False
    fits: int = 1

    @classmethod
    def parse(cls, prompt: str) -> Script:
        words = dict(word.partition("=")[::2] for word in prompt.split())
        fault = next((name for name in FAULTS if name in words), None)
        return cls(
            float(words.get("step_s", 0)),
            fault,
            words.get(fault or "", "all"),
            always="always" in words,
            starves="starves" in words,
            fits=int(words.get("fits", 1)),
        )

    def encode(self) -> None:
        """Take the place of encoding the prompt, which only the leader does."""
        if self.starves:
            raise MemoryError

    def check_ranks(self, num_ranks: int) -> None:
        """Run out of memory if there are too few ranks."""
        if num_ranks < self.fits:
            raise MemoryError

    def cause_fault(self, rank_number: int, folder: Path) -> None:
        """Cause the fault if it is meant for this rank and has not occurred in this job."""
        marker = folder / f"fault-occurred-{rank_number}"
        if (
            self.fault is None
            or self.ranks not in {"all", str(rank_number)}
            or (marker.exists() and not self.always)
        ):
            return
        marker.touch()
        match self.fault:
            case "raises":
                raise RuntimeError("staged")
            case "memory":
                raise MemoryError
            case "dies":
                os._exit(9)
            case "hangs":
                time.sleep(3600)


class StagedEngine:
    """Generate frames that depend only on the seed, with the delays and faults of the prompt."""

    def __init__(self, log: Path, parallel: ContextParallel = SINGLE) -> None:
        self._rank = parallel.rank
        self._log = log
        self._parallel = parallel

    def on(self, parallel: ContextParallel) -> StagedEngine:
        return StagedEngine(self._log, parallel)

    @property
    def capability(self) -> Capability:
        return Capability(
            model="staged",
            tasks=("text_to_video",),
            limits={},
            context_parallel=2,
            device="cpu",
            dtype="float32",
        )

    def generate(self, run: RunJob) -> Iterator[InputsRead | Event]:
        plan, script = run.order.plan, Script.parse(run.order.prompts[0])
        state = State.load(run.folder / run.resume.state) if run.resume else State.begin(run.order.seed)
        yield InputsRead()
        while state.segment < plan.num_segments:
            from_leader(self._parallel, script.encode)
            yield Encoded("denoise", state.segment)
            for step in range(state.step, plan.num_inference_steps):
                time.sleep(script.step_s)
                self._log_step(run.job_id, state.segment, step)
                script.check_ranks(self._parallel.size)
                if (state.segment, step + 1) == (0, FAULTY_STEP):
                    script.cause_fault(self._rank, run.folder)
                if self._parallel.size > 1:
                    dist.barrier(self._parallel.group)
                state = State(state.segment, "denoise", step + 1, state.random, latents=LATENTS)
                yield Stepped("denoise", state.segment, step + 1, plan.num_inference_steps, state)
            yield Latents("denoise", state.segment, LATENTS)
            yield from self._frames(plan, state.segment, run.order.seed)
            state = State(state.segment + 1, "denoise", 0, state.random)
            yield SegmentDone(state.segment - 1, state)

    def release_memory(self) -> None:
        """Do nothing: the engine holds no memory."""

    def _frames(self, plan: Plan, segment: int, seed: int) -> Iterator[Frames]:
        new = plan.num_frames - plan.num_condition_frames
        first = 0 if segment == 0 else plan.num_frames + (segment - 1) * new
        count = plan.num_frames if segment == 0 else new
        for start in range(first, first + count, CHUNK_FRAMES):
            length = min(CHUNK_FRAMES, first + count - start)
            chunk = torch.stack([frame(plan, seed, i) for i in range(start, start + length)])
            yield Frames(segment, chunk if self._rank == 0 else None)

    def _log_step(self, job_id: str, segment: int, step: int) -> None:
        if self._rank == 0:
            with self._log.open("a") as log:
                log.write(f"{job_id} {segment} {step} {self._parallel.size}\n")


def frame(plan: Plan, seed: int, index: int) -> torch.Tensor:
    """Return a frame of one grey, from which its seed and index can be told after H.264 coding."""
    grey = 16 + (37 * seed + 3 * index) % 220
    return torch.full((plan.height, plan.width, 3), grey, dtype=torch.uint8)


def load(setup: RankSetup, parallel: ContextParallel) -> StagedEngine:
    """Load the engine, or fail as the files in the checkpoint folder say. Other ranks wait for each other."""
    starving = setup.checkpoint / "starves_in_setup"
    if starving.exists() and starving.read_text() == str(dist.get_rank()):
        raise torch.OutOfMemoryError("CUDA out of memory")
    file = setup.checkpoint / "dies_in_setup"
    failures_left = int(file.read_text()) if file.exists() else 0
    dist.barrier()
    if failures_left and parallel.is_leader:
        file.write_text(str(failures_left - 1))
        raise RuntimeError("staged: the checkpoint is bad")
    return StagedEngine(setup.checkpoint / "steps.log", parallel)


if __name__ == "__main__":
    rank.main(sys.argv[1], load)
