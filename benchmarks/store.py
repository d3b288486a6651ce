"""Time that Redis spends on each call of the job store: `python -m benchmarks.store [--other CHECKOUT]`.

Writes `benchmarks/store.md`. Each load is built in a Redis of its own. The time is that which Redis counts
for scripts, without the client and the network. With `--other`, the code of another checkout is measured
in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.machine import Machine
from jobs.order import Order
from jobs.record import Progress
from jobs.store.job_store import JobStore
from jobs.store.submission import Submission
from model.spec.limits import Limits
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve

PAGE = Path(__file__).with_name("store.md")
CALLS = 50
LEASE_S = 3600.0
PLAN = resolve(GenerationParams(), Inputs(), Limits.from_json({}))
ORDER = Order(plan=PLAN, prompts=("a red ball",), negative_prompt="", seed=7)


@dataclass(frozen=True)
class Load:
    """Numbers of running and queued jobs and of owners."""

    running: int
    queued: int
    owners: int

    def __str__(self) -> str:
        """Return the load as the report shows it."""
        return f"R = {self.running:,}, Q = {self.queued:,}, O = {self.owners:,}"


LOADS = (Load(10, 100, 10), Load(1000, 100_000, 10_000))


def measure(redis: Redis, load: Load) -> dict[str, float]:
    """Return the mean time of scripts in µs for each call."""
    store = JobStore(redis)

    def submit(number: int) -> None:
        owner = f"owner-{number % load.owners}"
        store.client.submit(Submission(id=f"job-{number}", order=ORDER, owner=owner))

    total = load.running + load.queued
    for number in range(total):
        submit(number)
    leases = [lease for _ in range(load.running) if (lease := store.holder.claim("group", LEASE_S))]
    count = min(CALLS, load.running // 2)
    calls: dict[str, Callable[[int], object]] = {
        "submit": lambda turn: submit(total + turn),
        "claim": lambda _: store.holder.claim("group", LEASE_S),
        "renew": lambda turn: store.holder.renew_lease(leases[turn], Progress(phase="denoise", step=turn)),
        "poll of a queued job": lambda turn: store.client.estimate(f"job-{total - 1 - turn}"),
        "cancel": lambda turn: store.client.cancel(f"job-{total - 1 - turn}"),
        "finish": lambda turn: store.holder.confirm_cancel(leases[turn]),
        "requeue": lambda turn: store.holder.requeue(leases[-1 - turn], crashed=False),
        "sweep": lambda _: store.maintenance.sweep(),
        "count tickets": lambda _: store.maintenance.num_tickets_needed(),
    }
    found = {}
    for name, call in calls.items():
        redis.config_resetstat()
        for turn in range(count):
            call(turn)
        stats: Any = redis.info("commandstats")
        found[name] = (
            sum(stats[key]["usec"] for key in ("cmdstat_evalsha", "cmdstat_eval") if key in stats) / count
        )
    return found


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
        "# Time that Redis spends on each call of the job store",
        "",
        "Written by `python -m benchmarks.store`. Mean time of scripts in µs, by Redis's count. R jobs run,",
        "Q are queued, and O owners have queued jobs.",
        "",
        f"Machine: {machine.cpu}, {machine.cores} cores, load {machine.load}; commit {machine.commit}.",
        "",
        "| call | " + " | ".join(f"{name}: {load}" for name, load in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for call in results[columns[0][0]][columns[0][1]]:
        values = [f"{results[name][load][call]:,.0f}" for name, load in columns]
        lines += [f"| {call} | {' | '.join(values)} |"]
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
    large = Load(LOADS[-1].running, given.queued, LOADS[-1].owners)
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
