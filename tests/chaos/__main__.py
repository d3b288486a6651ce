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
from model.tiny import write_tiny
from tests.chaos.campaign import Campaign, Plan
from tests.chaos.client import Client
from tests.chaos.daemons import command_of
from tests.chaos.report import report, write
from tests.chaos.site import Fleet, Site, open_site
from tests.chaos.verdict import Verdict, judge
from tests.skew.release import check_out, recorded_release
from tests.waiting import wait_until


def main() -> int:
    options = _options()
    kinds = tuple(kind.strip() for kind in options.kinds.split(",") if kind.strip())
    plan = Plan(options.jobs, options.seed, options.minutes, kinds)
    folder = Path(tempfile.mkdtemp(prefix="longcat-chaos-"))
    print(f"seed {plan.seed}; logs are in {folder}", flush=True)
    began = time.monotonic()

    def log(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    checkpoint = _checkpoint(folder / "checkpoint", elastic=options.elastic)  # faults write files into it
    release = _check_out_last_release(folder / "release") if options.last_release else None
    plain = _without_loras(folder / "plain-checkpoint") if options.second_pool else None
    fleet = Fleet(1 if options.elastic else options.workers, release, plain, elastic=options.elastic)
    with open_site(folder, checkpoint, fleet) as site:
        client = Client(list(site.apis))
        course = Campaign(site, client, plan, log).run()
        verdict = judge(course, site, client)
        log("checked all jobs")
    verdict.orphaned_processes = _processes_left(site)
    write(options.out, plan, course, verdict)
    print(f"\n{report(plan, course, verdict)}")
    return _exit_status(verdict)


def _check_out_last_release(folder: Path) -> Path:
    version, commit = recorded_release()
    return check_out(commit, version, folder).folder


def _checkpoint(folder: Path, *, elastic: bool) -> Path:
    if not elastic:
        return Path(shutil.copytree(POCKET, folder))
    write_tiny(folder)  # four ranks cannot share the six attention heads of the pocket checkpoint
    return folder


def _without_loras(folder: Path) -> Path:
    return Path(shutil.copytree(POCKET, folder, ignore=shutil.ignore_patterns("lora")))


def _processes_left(site: Site) -> list[str]:
    try:
        wait_until(lambda: not site.processes())
    except TimeoutError:
        return [" ".join(command_of(process)) for process in site.processes()]
    return []


def _exit_status(verdict: Verdict) -> int:
    return 0 if verdict.is_good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=60, help="largest number of jobs")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random jobs and faults")
    parser.add_argument("--minutes", type=float, default=10.0, help="no fault is caused after this time")
    parser.add_argument("--kinds", default="", help="faults to cause, separated by commas; default: all")
    parser.add_argument(
        "--last-release",
        action="store_true",
        help="one of the two API processes and one more worker run the last release, from the repository's "
        "history; by default the faults are those that it survives",
    )
    parser.add_argument(
        "--second-pool", action="store_true", help="one more worker has a checkpoint without LoRAs"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="number of workers, each with a group of two ranks"
    )
    parser.add_argument(
        "--elastic",
        action="store_true",
        help="one worker of four ranks with CONTEXT_PARALLEL=auto, and a small random checkpoint",
    )
    parser.add_argument("--out", type=Path, default=Path("out/chaos"), help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
