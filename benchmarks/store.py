"""CPU time that Redis spends on each call of the job store: `python -m benchmarks.store [--other CHECKOUT]`.

Writes `benchmarks/store.md`. Each load is built in a Redis of its own and stays as it is while calls are
measured: what is submitted is claimed and ended, or cancelled. The time is that of Redis's main thread, by
the kernel's count, with parsing and networking and without waiting for a core. With `--other`, the code of
another checkout is measured in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from redis import Redis

from benchmarks.machine import Machine
from jobs.order import Order
from jobs.record import Progress, Result
from jobs.registration import GroupRegistration
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from jobs.store.submission import Submission
from model.spec.limits import Limits
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

PAGE = Path(__file__).with_name("store.md")
TURNS = 200
SUBMITTED_TOGETHER = 200
LEASE_S = 36000.0
PLAN = resolve(GenerationParams(), Inputs(), Limits.from_json({}))
ORDER = Order(plan=PLAN, prompts=("a red ball",), negative_prompt="", seed=7)
RESULT = Result(
    video_key="jobs/a/1/video.mp4",
    thumbnail_key="jobs/a/1/thumbnail.jpg",
    width=832,
    height=480,
    num_frames=93,
    fps=15,
    duration_s=6.2,
    size_bytes=1_000_000,
    sha256="0" * 64,
    seed=7,
)


@dataclass(frozen=True)
class Load:
    """Numbers of running and queued jobs, of owners and of groups."""

    running: int
    queued: int
    owners: int
    groups: int

    def __str__(self) -> str:
        """Return the load as the report shows it."""
        return f"R = {self.running:,}, Q = {self.queued:,}, O = {self.owners:,}, G = {self.groups:,}"


LOADS = (Load(10, 100, 10, 10), Load(1000, 100_000, 10_000, 1000))


class CpuTimes:
    """The CPU times of calls in µs, by name, less that of reading the counter."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._times_us: dict[str, list[float]] = {}

    def measure(
        self,
        name: str,
        call: Callable[Arguments, Returned],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Returned:
        """Return what a call returns, and remember its CPU time."""
        before_us = self._now_us()
        returned = call(*args, **kwargs)
        self._times_us.setdefault(name, []).append(self._now_us() - before_us)
        return returned

    def medians(self) -> dict[str, float]:
        """Return the median time of each call."""
        for _ in range(TURNS):
            self.measure("nothing", lambda: None)
        medians = {name: statistics.median(times_us) for name, times_us in self._times_us.items()}
        nothing = medians.pop("nothing")
        return {name: median - nothing for name, median in medians.items()}

    def _now_us(self) -> float:
        cpu: Any = self._redis.info("cpu")
        return 1e6 * (cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])


def measure(redis: Redis, load: Load) -> dict[str, float]:
    """Return the CPU time of each call in µs."""
    store = JobStore(redis)
    numbers = itertools.count()

    def new_jobs(num_jobs: int) -> list[Submission]:
        """Return jobs of all owners in turn. No limits apply, so they may be submitted together."""
        return [
            Submission(id=f"job-{number}", order=ORDER, owner=f"owner-{number % load.owners}")
            for number in itertools.islice(numbers, num_jobs)
        ]

    def claim() -> Lease:
        lease = store.holder.claim("group-0", LEASE_S)
        assert lease
        return lease

    total = load.running + load.queued
    while num_missing := total - store.client.counts()["queued"]:
        store.client.submit(*new_jobs(min(num_missing, SUBMITTED_TOGETHER)))
        store.maintenance.num_tickets_needed()  # as in every second: it looks at all that is new
    running = [claim() for _ in range(load.running)]
    groups = [GroupRegistration(redis, f"group-{number}", ttl_s=LEASE_S) for number in range(load.groups)]
    for group in groups:
        group.heartbeat("busy", 1)
    cpu_times = CpuTimes(redis)
    measured = cpu_times.measure
    for turn in range(TURNS):
        (job,) = new_jobs(1)
        measured("submit", store.client.submit, job)
        measured("poll of a queued job", _poll, store, job.id)
        measured("cancel", store.client.cancel, job.id)
        measured("page of 20", store.client.list_jobs, limit=20)
        progress = Progress(phase="denoise", step=turn)
        measured("renew", store.holder.renew_lease, running[turn % load.running], progress)
        store.client.submit(*new_jobs(1))
        lease = measured("claim", claim)
        measured("requeue", store.holder.requeue, lease, crashed=False)
        measured("finish", store.holder.succeed, claim(), RESULT, {"denoise": 1.0})
        measured("heartbeat", groups[turn % load.groups].heartbeat, "busy", 1)
        measured("sweep", store.maintenance.sweep)
        measured("count tickets", store.maintenance.num_tickets_needed)
    return cpu_times.medians()


def _poll(store: JobStore, job_id: str) -> None:
    store.client.get(job_id)
    store.client.estimate(job_id)


def measure_in(checkout: Path, load: Load) -> dict[str, float]:
    """Measure the code of a checkout in a process and with a Redis of its own."""
    with tempfile.TemporaryDirectory(prefix="longcat-store-") as folder:
        socket = Path(folder) / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder]
        server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        try:
            while not socket.exists() and server.poll() is None:
                time.sleep(0.01)
            command = [sys.executable, __file__, "--socket", str(socket), "--load", json.dumps(vars(load))]
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            result = subprocess.run(
                command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE
            )
            return json.loads(result.stdout)
        finally:
            server.terminate()
            server.wait()


def report(results: dict[str, dict[Load, dict[str, float]]]) -> str:
    """Return the page: a table with a column for each checkout and load."""
    machine = Machine.here()
    columns = [(name, load) for name, by_load in results.items() for load in by_load]
    lines = [
        "# CPU time that Redis spends on each call of the job store",
        "",
        f"Written by `python -m benchmarks.store`. Medians of {TURNS} calls, in µs of Redis's main thread.",
        "R jobs run, Q are queued, O owners have queued jobs, and G groups are registered.",
        "",
        f"Machine: {machine.cpu}, {machine.cores} cores, load {machine.load}; commit {machine.commit}.",
        "",
        "| call | " + " | ".join(f"{name}: {load}" for name, load in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for call in results[columns[0][0]][columns[0][1]]:
        values = [f"{results[name][load][call]:,.0f}" for name, load in columns]
        lines += [f"| {call} | {' | '.join(values)} |"]
    submit_us = round(results["this"][columns[-1][1]]["submit"])
    lines += ["", f"Under the last load, one core has time for {1e6 / submit_us:,.0f} submissions a second."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure this checkout, and another one if it is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, help="another checkout to measure side by side")
    parser.add_argument("--queued", type=int, default=LOADS[-1].queued, help="queued jobs of the large load")
    parser.add_argument("--socket", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.socket:
        redis = Redis(unix_socket_path=given.socket)
        print(json.dumps(measure(redis, Load(**json.loads(given.load)))))
        return
    large = replace(LOADS[-1], queued=given.queued)
    checkouts = {"this": Path(__file__).parents[1]} | (
        {"other": given.other.resolve()} if given.other else {}
    )
    results = {
        name: {load: measure_in(folder, load) for load in (LOADS[0], large)}
        for name, folder in checkouts.items()
    }
    PAGE.write_text(report(results))


if __name__ == "__main__":
    main()
