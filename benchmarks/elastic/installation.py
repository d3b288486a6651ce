"""Run a trace on a real installation and collect what came of it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.elastic.trace import Arrival, Video
from stack.demo import free_port
from stack.processes import Program, running_program
from stack.redis_server import RedisServer, find_redis

DEFAULT_DEADLINE_S = 3600
"""The service's default, in the time of LongCat-Video."""

START_LIMIT_S = 1800.0
END_LIMIT_S = 3600.0
POLL_S = 0.5
ENDED = {"succeeded", "failed", "cancelled"}

LatentsOf = dict[str, Tensor]
"""The latents of a job, by segment and stage."""


@dataclass(frozen=True)
class Outcome:
    """What came of a job. Times are real seconds.

    Attributes:
        deadline_met: whether it ended by its deadline.
        gpu_s: time of its ranks, in which each counts.
        latents: of its stages.
    """

    video: Video
    response_s: float
    deadline_met: bool
    gpu_s: float
    attempts: int
    latents: LatentsOf


@dataclass(frozen=True)
class Run:
    """What came of a trace.

    Attributes:
        num_changes: how often a job went on with another number of ranks.
        max_widths: how many different numbers of ranks a job had, at most.
        staged_gpu_s: staged time of all steps and decodes, in which each rank counts. Real seconds.
        late_steps: the share of steps whose computation took longer than their staged time.
        late_decodes: the same of decodes.
    """

    outcomes: Sequence[Outcome]
    num_changes: int
    max_widths: int
    staged_gpu_s: float
    late_steps: float
    late_decodes: float


@dataclass(frozen=True)
class Installation:
    """A running installation, and the checkpoint folder in which its ranks write."""

    client: httpx.Client
    checkpoint: Path

    def submit(self, video: Video, deadline_s: float | None = None) -> str:
        """Submit a job and return its id."""
        body = video.request | ({"deadline_s": deadline_s} if deadline_s else {})
        job_id: str = self.client.post("/generate", json=body).raise_for_status().json()["id"]
        return job_id

    def wait_for(self, job_id: str) -> dict[str, Any]:
        """Return a job once it has succeeded. Raises AssertionError if it has not."""
        until = time.monotonic() + END_LIMIT_S
        while time.monotonic() < until:
            job: dict[str, Any] = self.client.get(f"/jobs/{job_id}").raise_for_status().json()
            if job["status"] in ENDED:
                assert job["status"] == "succeeded", job["error"]
                return job
            time.sleep(POLL_S)
        raise TimeoutError(f"job {job_id} has not ended")

    def latents_of(self, job_id: str) -> LatentsOf:
        """Return the latents of a job that has ended."""
        files = (self.checkpoint / "latents").glob(f"{job_id}-*.safetensors")
        return {file.stem.removeprefix(f"{job_id}-"): load_file(file)["latents"] for file in files}

    def run(self, arrivals: Iterable[Arrival], time_scale: float) -> Run:
        """Submit the jobs of a trace at their times, and return what came of them all."""
        began_s, jobs = time.monotonic(), []
        for arrival in arrivals:
            time.sleep(max(0.0, began_s + arrival.at_s * time_scale - time.monotonic()))
            deadline_s = arrival.video.deadline_s * time_scale
            jobs.append((arrival.video, self.submit(arrival.video, deadline_s)))
        outcomes = [self._outcome(video, job_id) for video, job_id in jobs]
        lines = self._lines_of({job_id for _, job_id in jobs})
        widths = {
            job_id: [line["width"] for line in of_job] for job_id, of_job in groupby(lines, itemgetter("job"))
        }
        return Run(
            outcomes,
            sum(before != after for of_job in widths.values() for before, after in pairwise(of_job)),
            max(len(set(of_job)) for of_job in widths.values()),
            sum(line["paced_s"] * line["width"] for line in lines),
            _share_late(line for line in lines if line["kind"] == "Stepped"),
            _share_late(line for line in lines if line["kind"] != "Stepped"),
        )

    def _outcome(self, video: Video, job_id: str) -> Outcome:
        job = self.wait_for(job_id)
        created, finished = (datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at"))
        return Outcome(
            video=video,
            response_s=(finished - created).total_seconds(),
            deadline_met=bool(job["deadline_met"]),
            gpu_s=job["gpu_s"],
            attempts=job["attempt"],
            latents=self.latents_of(job_id),
        )

    def _lines_of(self, job_ids: set[str]) -> list[dict[str, Any]]:
        """Return what the ranks logged of these jobs, by job and in order."""
        text = (self.checkpoint / "events.jsonl").read_text()
        lines = [line for line in map(json.loads, text.splitlines()) if line["job"] in job_ids]
        return sorted(lines, key=itemgetter("job", "at_s"))


def _share_late(lines: Iterable[Mapping[str, Any]]) -> float:
    return mean(line["computed_s"] > line["paced_s"] for line in lines)


@contextmanager
def running_installation(
    folder: Path, weights: Path, time_scale: float, *, num_ranks: int, context_parallel: str
) -> Iterator[Installation]:
    """Start Redis, the API and a worker, yield when the worker takes jobs, and stop all.

    Unlike `make serve`, the worker has the priority of the other processes.
    """
    checkpoint = Path(shutil.copytree(weights, folder / "checkpoint"))
    (checkpoint / "time_scale").write_text(str(time_scale))
    (checkpoint / "latents").mkdir()
    port = free_port()
    with ExitStack() as parts:
        log = parts.enter_context((folder / "log").open("w", buffering=1))
        redis = parts.enter_context(RedisServer(folder / "redis", find_redis()))
        settings = {
            "REDIS_URL": redis.url,
            "DATA_DIR": folder / "data",
            "CHECKPOINT": checkpoint,
            "PORT": port,
            "DEVICE": "cpu",
            "RANKS": num_ranks,
            "CONTEXT_PARALLEL": context_parallel,
            "RANK_MODULE": "benchmarks.elastic.rank",
            "X264_PRESET": "ultrafast",
            "DEFAULT_DEADLINE_S": max(1, round(DEFAULT_DEADLINE_S * time_scale)),
            **dict.fromkeys(("OWNER_REQUESTS_PER_S", "OWNER_QUEUED_JOBS", "TOTAL_QUEUED_JOBS"), "none"),
        }
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **{f"LONGCAT_{name}": str(value) for name, value in settings.items()},
        }
        for name in ("service", "worker"):
            program = Program(name, name)
            parts.enter_context(
                running_program(program, environment, lambda name, line: print(name, line, file=log))
            )
        client = parts.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0))
        _wait_until_ready(client)
        yield Installation(client, checkpoint)


def _wait_until_ready(client: httpx.Client) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            if client.get("/readyz?workers=1").is_success:
                return
        time.sleep(POLL_S)
    raise TimeoutError("the installation is not ready")
