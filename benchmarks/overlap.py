"""Part (d), what overlap gives: `python -m benchmarks.overlap [--jobs N] [--out FOLDER]`.

Jobs one at a time, each ordered when the one before has come, against all ordered at once: a real stack
(Redis, API, one worker) with a tiny checkpoint, where x264 tries so hard that decoding and encoding weigh
about as much as the steps. Below 1 is what is done for one job while another denoises. Writes `overlap.json`,
`overlap.md`, and `overlap-trace.json`, a timeline of all jobs for Perfetto.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import httpx

from benchmarks.installation import client_of_stack
from benchmarks.machine import Machine

REQUEST = {"prompt": "a red ball rolls", "resolution": "720p", "num_frames": 33, "num_inference_steps": 18}
X264_PRESET = "placebo"
ALONE = 5
POLL_S = 0.2  # the times are those that the jobs tell
TIMEOUT_S = 3600.0

Job = dict[str, Any]
Events = list[dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """Seconds; those of the stages are of one job alone. `ranks_waited_s` is of all jobs together."""

    jobs: int
    alone_s: float
    stages_s: dict[str, float]
    at_once_s: float
    ranks_waited_s: float

    @property
    def ratio(self) -> float:
        """Of all at once to as many one after the other."""
        return self.at_once_s / (self.jobs * self.alone_s)


def ordered(client: httpx.Client, seed: int) -> str:
    """Submit one job, and return its id."""
    job_id: str = client.post("/generate", json=REQUEST | {"seed": seed}).raise_for_status().json()["id"]
    return job_id


def came(client: httpx.Client, job_id: str) -> Job:
    """Return the job once it has succeeded."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        job: Job = client.get(f"/jobs/{job_id}").raise_for_status().json()
        if job["status"] == "succeeded":
            return job
        assert job["status"] not in {"failed", "cancelled"}, job["error"]
        time.sleep(POLL_S)
    raise TimeoutError(f"job {job_id} has not come")


def alone(client: httpx.Client) -> tuple[float, dict[str, float]]:
    """Return the seconds that one job takes, and its stages: medians of several jobs after a first one."""
    jobs = [came(client, ordered(client, seed)) for seed in range(1 + ALONE)][1:]
    found = [stages_s(done_for(client, job)) for job in jobs]
    return median(_lasted_s([job]) for job in jobs), {
        name: median(stages[name] for stages in found) for name in found[0]
    }


def at_once(client: httpx.Client, count: int) -> tuple[float, Events]:
    """Return the seconds from the first submission to the last video, and the events of all jobs."""
    ids = [ordered(client, seed) for seed in range(count)]
    jobs = [came(client, job_id) for job_id in ids]
    return _lasted_s(jobs), [event for job in jobs for event in done_for(client, job)]


def done_for(client: httpx.Client, job: Job) -> Events:
    """Return the events of a job's timeline."""
    events: Events = client.get(f"/jobs/{job['id']}/timeline").raise_for_status().json()["traceEvents"]
    return events


def stages_s(events: Events) -> dict[str, float]:
    """Return the stages of one job by name: those of its ranks, and those of its video file."""
    ranks = {event["name"]: event["dur"] / 1e6 for event in _of(events, "ranks") if not _is_detail(event)}
    return ranks | {"video": sum(event["dur"] for event in _of(events, "video")) / 1e6}


def waited_s(events: Events) -> float:
    """How long the ranks had nothing to do between their first stage and their last."""
    ranks = sorted(_of(events, "ranks"), key=lambda event: event["ts"])
    waited, until = 0, ranks[0]["ts"]
    for event in ranks:
        waited += max(0, event["ts"] - until)
        until = max(until, event["ts"] + event["dur"])
    return waited / 1e6


def _of(events: Events, lane: str) -> Events:
    return [event for event in events if event.get("cat") == lane]


def _is_detail(event: dict[str, Any]) -> bool:
    return event["name"].startswith("step ") or event["name"] == "chunk"


def _lasted_s(jobs: list[Job]) -> float:
    began = min(datetime.fromisoformat(job["created_at"]) for job in jobs)
    return (max(datetime.fromisoformat(job["finished_at"]) for job in jobs) - began).total_seconds()


def main() -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    machine = Machine.here()
    with patch.dict(os.environ, LONGCAT_X264_PRESET=X264_PRESET), client_of_stack() as client:
        alone_s, stages = alone(client)
        at_once_s, events = at_once(client, options.jobs)
    found = Found(options.jobs, alone_s, stages, at_once_s, waited_s(events))
    summary = {**asdict(found), "ratio": found.ratio, "machine": asdict(machine)}
    (options.out / "overlap.json").write_text(json.dumps(summary, indent=1) + "\n")
    (options.out / "overlap-trace.json").write_text(json.dumps({"traceEvents": events}) + "\n")
    (options.out / "overlap.md").write_text(_report(found, machine))


def _report(found: Found, machine: Machine) -> str:
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.stages_s.items())
    return (
        "# What overlap gives\n\n"
        f"{found.jobs} jobs at once took {found.at_once_s:.1f} s, one alone {found.alone_s:.2f} s "
        f"({stages}): {found.ratio:.2f} of what they take one by one. Between two jobs the ranks waited "
        f"{1000 * found.ranks_waited_s / max(1, found.jobs - 1):.0f} ms.\n\n"
        f"{machine}\n\n`python -m benchmarks.overlap`\n"
    )


if __name__ == "__main__":
    main()
