"""Draw the jobs of a run: the mix of the simulation, on the small checkpoint."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.elastic import pace
from benchmarks.simulation.trace import MIX, Kind
from model.spec.limits import load_limits
from model.spec.params import GenerationParams
from model.spec.plan import Plan
from model.spec.resolve import Inputs, resolve

NUM_GPUS = 4
VIDEOS_OF_A_KIND = 3
_SIZE = {"num_frames": 5, "guidance_scale": 1.0}
_DISTILLED = {**_SIZE, "distilled": True, "num_inference_steps": pace.DISTILLED_STEPS}
REQUESTS: dict[str, dict[str, Any]] = {
    "distilled clip": _DISTILLED,
    "50 steps": {**_SIZE, "guidance_scale": 2.0, "num_inference_steps": pace.STEPS},
    "distilled, refined": {**_DISTILLED, "refine": True, "spatial_refine_only": True},
    "ten segments": {**_DISTILLED, "num_segments": 10, "num_condition_frames": 1},
}
"""What stands for the kinds of `MIX`."""


@dataclass(frozen=True)
class Video:
    """A video that several jobs make. All jobs of a run that make it have the same latents."""

    kind: str
    seed: int

    @property
    def request(self) -> dict[str, Any]:
        """Return the body of its requests."""
        return {"prompt": "a big red ball", "seed": self.seed, **REQUESTS[self.kind]}

    @property
    def deadline_s(self) -> float:
        """Return in which time it is wanted, in the time of LongCat-Video."""
        return next(kind.deadline_s for kind in MIX if kind.name == self.kind)


@dataclass(frozen=True)
class Arrival:
    """A job that is submitted `at_s` seconds after the start, in the time of LongCat-Video."""

    at_s: float
    video: Video


def draw_trace(seed: int, num_jobs: int, load: float, checkpoint: Path) -> list[Arrival]:
    """Return jobs that arrive at random and take this share of the GPUs' time on groups of one."""
    chosen = random.Random(seed)  # noqa: S311
    mean_gap_s = mean_gpu_s(checkpoint) / (NUM_GPUS * load)
    arrivals, at_s = [], 0.0
    for _ in range(num_jobs):
        at_s += chosen.expovariate(1 / mean_gap_s)
        kind = chosen.choices(MIX, [kind.share for kind in MIX])[0]
        arrivals.append(Arrival(at_s, Video(kind.name, chosen.randrange(VIDEOS_OF_A_KIND))))
    return arrivals


def videos_of(arrivals: Sequence[Arrival]) -> list[Video]:
    """Return the different videos of a trace, in the order in which they first arrive."""
    return list(dict.fromkeys(arrival.video for arrival in arrivals))


def mean_gpu_s(checkpoint: Path) -> float:
    """Return the GPU time of a mean job on groups of one, in the time of LongCat-Video."""
    return sum(kind.share * pace.run_s(plan_of(kind, checkpoint), 1) for kind in MIX)


def plan_of(kind: Kind, checkpoint: Path) -> Plan:
    """Return the plan of the jobs that stand for a kind."""
    params = GenerationParams.model_validate(REQUESTS[kind.name])
    return resolve(params, Inputs(), load_limits(checkpoint))
