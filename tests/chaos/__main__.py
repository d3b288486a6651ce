"""Run a fault campaign and report its result: `python -m tests.chaos`.

The exit status is 1 if a guarantee was broken.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from jobs.settings import POCKET
from tests.chaos.campaign import Campaign, Plan
from tests.chaos.client import Client
from tests.chaos.report import report, write
from tests.chaos.site import Site, open_site
from tests.chaos.verdict import Verdict, judge
from tests.waiting import wait_until


def main() -> int:
    options = _options()
    plan = Plan(options.jobs, options.seed, options.minutes)
    folder = Path(tempfile.mkdtemp(prefix="longcat-chaos-"))
    print(f"logs are in {folder}", flush=True)
    began = time.monotonic()

    def log(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    checkpoint = shutil.copytree(POCKET, folder / "checkpoint")  # faults write files into it
    with open_site(folder, checkpoint, options.workers) as site:
        client = Client(list(site.apis))
        course = Campaign(site, client, plan, log).run()
        verdict = judge(course, site, client)
        log("checked all jobs")
    verdict.orphaned_processes = _processes_left(site)
    write(options.out, plan, course, verdict)
    print(f"\n{report(plan, course, verdict)}")
    return _exit_status(verdict)


def _processes_left(site: Site) -> list[str]:
    try:
        wait_until(lambda: not site.processes(), timeout_s=20.0)
    except TimeoutError:
        return [" ".join(process.cmdline()) for process in site.processes()]
    return []


def _exit_status(verdict: Verdict) -> int:
    return 0 if verdict.is_good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=60, help="largest number of jobs")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random jobs and faults")
    parser.add_argument("--minutes", type=float, default=10.0, help="no fault is caused after this time")
    parser.add_argument(
        "--workers", type=int, default=2, help="number of workers, each with a group of two ranks"
    )
    parser.add_argument("--out", type=Path, default=Path("out/chaos"), help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
