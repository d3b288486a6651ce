"""Read, write and generate traces: which jobs arrive when.

A trace is a file of JSON Lines, one arrival in each, in the order of time:

    {"at_s": 12.5, "owner": "studio", "request": {"distilled": true}, "deadline_s": 120, "priority": "normal"}

`request` has fields of `POST /generate` that need no input file; `deadline_s` and `priority` may be absent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile
from math import cos, pi
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.simulation.times import run_s
from jobs.order import Priority
from model.spec.limits import Limits
from model.spec.params import GenerationParams
from model.spec.plan import Plan
from model.spec.resolve import Inputs, resolve

LIMITS = Limits.from_json({})


class Arrival(BaseModel):
    """A request that arrives `at_s` seconds after the start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_s: float = Field(ge=0, allow_inf_nan=False)
    owner: str = ""
    request: GenerationParams = GenerationParams()
    deadline_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    priority: Priority = "normal"

    @property
    def plan(self) -> Plan:
        """Return the resolved request. Raises InvalidParams if the released checkpoint cannot run it."""
        return _resolve(self.request.model_dump_json(exclude_none=True))


@lru_cache
def _resolve(request: str) -> Plan:
    return resolve(GenerationParams.model_validate_json(request), Inputs(), LIMITS)


def write_trace(path: Path, arrivals: Iterable[Arrival]) -> None:
    """Write a trace."""
    lines = (arrival.model_dump_json(exclude_none=True, exclude_defaults=True) for arrival in arrivals)
    path.write_text("".join(f"{line}\n" for line in lines))


def read_trace(path: Path) -> list[Arrival]:
    """Read a trace. Empty lines are left out.

    Raises ValueError, with the number of the line, if it is not valid or has no arrivals; OSError.
    """
    arrivals: list[Arrival] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            arrival = Arrival.model_validate_json(line)
            arrival.plan  # noqa: B018 - it raises if the request is not possible
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if arrivals and arrival.at_s < arrivals[-1].at_s:
            raise ValueError(f"{path}:{number}: is earlier than the line before")
        arrivals.append(arrival)
    if not arrivals:
        raise ValueError(f"{path}: has no arrivals")
    return arrivals


@dataclass(frozen=True)
class Kind:
    """A kind of job in a mix.

    Attributes:
        share: of all jobs.
        deadline_s: in which time after its submission it is wanted.
    """

    name: str
    share: float
    deadline_s: float
    request: Mapping[str, Any]

    @property
    def params(self) -> GenerationParams:
        """Return the options of its requests."""
        return GenerationParams.model_validate(self.request)


MIX = (
    Kind("distilled clip", 0.5, 120, {"distilled": True}),
    Kind("50 steps", 0.2, 600, {}),
    Kind("distilled, refined", 0.2, 240, {"distilled": True, "refine": True}),
    Kind("ten segments", 0.1, 1500, {"distilled": True, "num_segments": 10}),
)


def mean_gpu_s() -> float:
    """Return the GPU time of a mean job of the mix on groups of one."""
    return sum(kind.share * run_s(Arrival(at_s=0, request=kind.params).plan, 1) for kind in MIX)


def poisson_trace(seed: int, num_jobs: int, mean_gap_s: float, owners: Mapping[str, float]) -> list[Arrival]:
    """Return jobs of `MIX` that arrive at random. `owners` have shares of the jobs."""
    return list(islice(_arrivals(seed, mean_gap_s, owners), num_jobs))


def _arrivals(seed: int, mean_gap_s: float, owners: Mapping[str, float]) -> Iterator[Arrival]:
    chosen = random.Random(seed)  # noqa: S311
    at_s = 0.0
    shares = [kind.share for kind in MIX]
    while True:
        at_s += chosen.expovariate(1 / mean_gap_s)
        kind = chosen.choices(MIX, shares)[0]
        owner = chosen.choices(list(owners), list(owners.values()))[0]
        yield Arrival(at_s=at_s, owner=owner, request=kind.params, deadline_s=kind.deadline_s)


DAY_S = 86_400.0


def day_trace(
    seed: int, peak_gap_s: float, owners: Mapping[str, float], lowest: float = 0.1
) -> list[Arrival]:
    """Return the jobs of `MIX` of a day, from midnight to midnight.

    Most arrive at 16:00, with `peak_gap_s` between two of them on average, and the share `lowest` of that at
    4:00. The rate follows a cosine.
    """
    chosen = random.Random(seed)  # noqa: S311
    at_peak_rate = takewhile(lambda arrival: arrival.at_s < DAY_S, _arrivals(seed, peak_gap_s, owners))
    return [
        arrival
        for arrival in at_peak_rate
        if chosen.random() < lowest + (1 - lowest) * daily_share(arrival.at_s)
    ]


def daily_share(at_s: float) -> float:
    """Return 0 at 4:00 and 1 at 16:00."""
    return (1 - cos(2 * pi * (at_s / DAY_S - 4 / 24))) / 2
