"""Part (d), what overlap gives: `python -m benchmarks.overlap [--jobs N] [--out FOLDER]`.

Jobs one at a time, each ordered when the one before has come, against all ordered at once: a real stack
(Redis, API, one worker) with a tiny checkpoint, where steps are few and x264 tries hard, so that what comes
after the last step weighs as much as the steps. Below 1 is what is done for one job while another denoises.
Writes `overlap.json` and `overlap.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import httpx

from benchmarks.installation import client_of_stack
from benchmarks.machine import Machine

WISH = {"prompt": "a red ball rolls", "resolution": "720p", "num_frames": 33, "num_inference_steps": 4}
X264_PRESET = "veryslow"
ALONE = 5
POLL_S = 0.2  # the times are those that the jobs tell
TIMEOUT_S = 3600.0

Job = dict[str, Any]


def ordered(client: httpx.Client, seed: int) -> str:
    """Order one film; its id."""
    job_id: str = client.post("/generate", json=WISH | {"seed": seed}).raise_for_status().json()["id"]
    return job_id


def came(client: httpx.Client, job_id: str) -> Job:
    """The job when it has succeeded."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        job: Job = client.get(f"/jobs/{job_id}").raise_for_status().json()
        if job["status"] == "succeeded":
            return job
        assert job["status"] not in {"failed", "cancelled"}, job["error"]
        time.sleep(POLL_S)
    raise TimeoutError(f"job {job_id} has not come")


def alone(client: httpx.Client) -> tuple[float, dict[str, float]]:
    """Seconds of one job from order to film, and of its phases: medians of several, after a first."""
    jobs = [came(client, ordered(client, seed)) for seed in range(1 + ALONE)][1:]
    phases = {name: median(job["timings_s"][name] for job in jobs) for name in jobs[0]["timings_s"]}
    return median(_lasted_s([job]) for job in jobs), phases


def at_once(client: httpx.Client, count: int) -> float:
    """Seconds from the first order to the last film."""
    ids = [ordered(client, seed) for seed in range(count)]
    return _lasted_s([came(client, job_id) for job_id in ids])


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
        single_s, phases = alone(client)
        all_s = at_once(client, options.jobs)
    found = {
        "jobs": options.jobs,
        "one job alone, s": single_s,
        "its phases, s": phases,
        "all at once, s": all_s,
        "ratio": all_s / (options.jobs * single_s),
    }
    (options.out / "overlap.json").write_text(
        json.dumps({**found, "machine": asdict(machine)}, indent=1) + "\n"
    )
    (options.out / "overlap.md").write_text(_report(found, machine))


def _report(found: dict[str, Any], machine: Machine) -> str:
    together, single = f"{found['all at once, s']:.1f} s", f"{found['one job alone, s']:.2f} s"
    phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["its phases, s"].items())
    return (
        "# What overlap gives\n\n"
        f"{found['jobs']} jobs at once took {together}, one alone {single} ({phases}): "
        f"{found['ratio']:.2f} of what they take one by one.\n\n"
        f"{machine}\n\n`python -m benchmarks.overlap`\n"
    )


if __name__ == "__main__":
    main()
