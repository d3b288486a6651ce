"""Measure what the durable mode costs: `python -m benchmarks.replication [--out FILE.md]`.

Three Redis servers with Sentinels run on this machine, each with `appendfsync always`. Submissions that wait
for 0, 1 and 2 replicas take turns, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks.machine import Machine
from jobs.connect import connect
from jobs.store.job_store import JobStore
from jobs.store.scripts import Replication
from tests.jobs.examples import a_submission
from tests.redis_fleet import redis_fleet

NUM_SUBMISSIONS = 300
REPLICAS = (0, 1, 2)
_PAGE = """\
# What waiting for replicas costs

Milliseconds of a submission to Redis, {count} for each row. All servers are on one machine: add the
round trip of the network between them.

| `REDIS_WAIT_REPLICAS` | p50 | p99 |
|---|---|---|
{rows}

{at}, commit {commit}; {cpu}, {cores} cores, load {load} before the run; Python {python}.

`python -m benchmarks.replication`
"""


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replication", description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = Machine.here()
    page = _page(measure(), machine)
    if options.out:
        options.out.write_text(page)
    print(page)


def measure() -> dict[int, list[float]]:
    """Return the milliseconds of each submission, by the number of replicas that it waited for."""
    times_ms: dict[int, list[float]] = {number: [] for number in REPLICAS}
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_fleet(Path(folder)) as fleet,
        connect(fleet.url) as redis,
    ):
        clients = {number: JobStore(redis, replication=Replication(number)).client for number in REPLICAS}
        for _ in range(NUM_SUBMISSIONS):
            for number, client in clients.items():
                submission = a_submission()
                began = time.perf_counter()
                client.submit(submission)
                times_ms[number].append((time.perf_counter() - began) * 1000)
    return times_ms


def _page(times_ms: dict[int, list[float]], machine: Machine) -> str:
    rows = [
        f"| {number} | {median(times):.2f} | {quantiles(times, n=100)[98]:.2f} |"
        for number, times in times_ms.items()
    ]
    return _PAGE.format(rows="\n".join(rows), count=NUM_SUBMISSIONS, **vars(machine))


if __name__ == "__main__":
    main()
