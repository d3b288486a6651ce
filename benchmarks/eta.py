"""How far our ETAs are off: `python -m benchmarks.eta [--jobs N]` writes `benchmarks/eta.{json,md}`.

A real stack (Redis, API, one worker, a tiny checkpoint) is given a mix of jobs, a few at a time. Two ETAs of
each are held against what came: what the answer to `POST /generate` tells, which counts the
wait, and the first that is told of the running job.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from benchmarks.installation import client_of_stack
from benchmarks.machine import Machine
from stack.demo import sample_image

HERE = Path(__file__).parent
IN_SYSTEM = 4  # jobs that wait or run at a time
POLL_S = 0.2
ENDED = {"succeeded", "failed", "cancelled"}


@dataclass(frozen=True)
class ObservedJob:
    """One job: what was told of it, and what came. Seconds; None where nothing was told."""

    task: str
    queue_eta_s: float | None
    queue_actual_s: float
    run_eta_s: float | None
    run_actual_s: float | None


def requests(count: int, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Return requests as clients send them: mostly texts and images, some long, distilled or refined."""
    dice = random.Random(seed)  # noqa: S311 - a benchmark
    image = {"base64": base64.b64encode(sample_image()).decode()}
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"num_inference_steps": dice.choice([8, 16, 32])},
        lambda: {"num_inference_steps": dice.choice([8, 16]), "num_frames": 33},
        lambda: {"image": image, "num_inference_steps": dice.choice([8, 16])},
        lambda: {"prompts": ["a cat sleeps", "it wakes up", "it walks away"], "num_inference_steps": 8},
        lambda: {"distilled": True},
        lambda: {"refine": True, "num_inference_steps": 16},
    ]
    for _ in range(count):
        request = dice.choices(kinds, [8, 4, 5, 3, 3, 2])[0]()
        yield request if "prompts" in request else {"prompt": "a red ball rolls"} | request


def observe(client: httpx.Client, count: int) -> list[ObservedJob]:
    """Order so many jobs, never more than a few at a time, and watch them to their end."""
    going: dict[str, dict[str, Any]] = {}
    runs: dict[str, tuple[float, datetime]] = {}
    ended: list[ObservedJob] = []
    remaining = requests(count)
    while True:
        while len(going) < IN_SYSTEM and (request := next(remaining, None)):
            job = client.post("/generate", json=request).raise_for_status().json()
            going[job["id"]] = job
        if not going:
            return ended
        for job_id in list(going):
            job = client.get(f"/jobs/{job_id}").raise_for_status().json()
            eta_s = (job["progress"] or {}).get("eta_s")
            if job["status"] == "running" and eta_s is not None:
                runs.setdefault(job_id, (eta_s, datetime.now(UTC)))
            if job["status"] in ENDED:
                ended.append(_told(going.pop(job_id), job, runs.get(job_id)))
                print(ended[-1], file=sys.stderr)
        time.sleep(POLL_S)


def summary(jobs: list[ObservedJob]) -> dict[str, dict[str, float]]:
    """Median and 90th percentile of both errors, in seconds and as a share of what came."""
    return {
        "queue": _errors([(job.queue_eta_s, job.queue_actual_s) for job in jobs]),
        "run": _errors([(job.run_eta_s, job.run_actual_s) for job in jobs]),
    }


def _errors(told: Sequence[tuple[float | None, float | None]]) -> dict[str, float]:
    off = [(abs(eta_s - actual_s), actual_s) for eta_s, actual_s in told if eta_s is not None and actual_s]
    errors_s, errors = [error_s for error_s, _ in off], [error_s / actual_s for error_s, actual_s in off]
    return {
        "told": len(off),
        "median_s": median(errors_s),
        "p90_s": quantiles(errors_s, n=10)[-1],
        "median": median(errors),
        "p90": quantiles(errors, n=10)[-1],
    }


def _told(ordered: dict[str, Any], job: dict[str, Any], run: tuple[float, datetime] | None) -> ObservedJob:
    assert job["status"] == "succeeded", job["error"]
    finished = datetime.fromisoformat(job["finished_at"])
    created = datetime.fromisoformat(job["created_at"])
    return ObservedJob(
        task=job["task"],
        queue_eta_s=(ordered["progress"] or {}).get("eta_s"),
        queue_actual_s=(finished - created).total_seconds(),
        run_eta_s=run and run[0],
        run_actual_s=run and (finished - run[1]).total_seconds(),
    )


def _report(jobs: list[ObservedJob], machine: Machine) -> str:
    rows = "".join(
        f"| {name} | {kind['told']} of {len(jobs)} | {kind['median_s']:.2f} s, {kind['median']:.0%} "
        f"| {kind['p90_s']:.2f} s, {kind['p90']:.0%} |\n"
        for name, kind in zip(
            ("in the queue, at submission", "in the run, the first"), summary(jobs).values(), strict=True
        )
    )
    return (
        "# How far ETAs are off\n\n"
        "Error of the ETA, in seconds and as a share of what came. A real stack with a tiny checkpoint, "
        f"whose jobs run for a second or less; a mix of {len(jobs)}, at most {IN_SYSTEM} at a time; nothing "
        "was known of any job before the first.\n\n"
        f"| ETA | told | median | p90 |\n|---|---|---|---|\n{rows}\n"
        f"{machine}\n\n`python -m benchmarks.eta`; all jobs are in `eta.json`.\n"
    )


def main() -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=30)
    count = parser.parse_args().jobs
    machine = Machine.here()
    with client_of_stack() as client:
        jobs = observe(client, count)
    found = {"machine": asdict(machine), "errors": summary(jobs), "jobs": [asdict(job) for job in jobs]}
    (HERE / "eta.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "eta.md").write_text(_report(jobs, machine))


if __name__ == "__main__":
    main()
