"""Run the same jobs with elastic groups and with each fixed split, and write `benchmarks/elastic.md`.

`--only NAME` runs these groups again, and keeps what `elastic.json` has of the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.elastic.installation import LatentsOf, Run, running_installation
from benchmarks.elastic.report import page, summary
from benchmarks.elastic.trace import NUM_GPUS, Arrival, Video, draw_trace, videos_of
from benchmarks.machine import Machine
from model.tiny import write_tiny

HERE = Path(__file__).parents[1]
GROUPS = {"elastic": "auto", "1 of 4": "4", "2 of 2": "2", "4 of 1": "1"}
"""The values of `CONTEXT_PARALLEL` that are compared, by the name of the groups."""


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        load: the share of the GPUs' time that the jobs take on groups of one.
        speedup: how many seconds of LongCat-Video a real one stands for.
    """

    jobs: int
    seed: int
    load: float
    speedup: float


def make_alone(weights: Path, arrivals: list[Arrival]) -> dict[Video, LatentsOf]:
    """Return the latents of each video of a trace, made one by one on one rank."""
    with (
        tempfile.TemporaryDirectory(prefix="longcat-") as folder,
        running_installation(Path(folder), weights, 0.0, num_ranks=1, context_parallel="1") as installation,
    ):
        jobs = {video: installation.submit(video) for video in videos_of(arrivals)}
        for job_id in jobs.values():
            installation.wait_for(job_id)
        return {video: installation.latents_of(job_id) for video, job_id in jobs.items()}


def run_groups(weights: Path, context_parallel: str, arrivals: list[Arrival], options: Options) -> Run:
    """Run a trace on four ranks. A first job, which does not count, shows the worker how long jobs take."""
    scale = 1 / options.speedup
    with (
        tempfile.TemporaryDirectory(prefix="longcat-") as folder,
        running_installation(
            Path(folder), weights, scale, num_ranks=NUM_GPUS, context_parallel=context_parallel
        ) as installation,
    ):
        installation.wait_for(installation.submit(arrivals[0].video))
        return installation.run(arrivals, scale)


def compare(options: Options, groups: Mapping[str, str]) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the name and the summary of each way to divide the ranks, one run after the other."""
    with tempfile.TemporaryDirectory(prefix="longcat-") as folder:
        write_tiny(weights := Path(folder))
        arrivals = draw_trace(options.seed, options.jobs, options.load, weights)
        alone = make_alone(weights, arrivals)
        for name, value in groups.items():
            machine = Machine.here()
            run = run_groups(weights, value, arrivals, options)
            yield name, {"machine": asdict(machine), **summary(run, alone, options.speedup)}


def main() -> None:
    """Measure and write both files, after each run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elastic", description=__doc__)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.85)
    parser.add_argument("--speedup", type=float, default=4.0)
    parser.add_argument("--only", action="append", choices=GROUPS, help="groups to run; all by default")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = vars(parser.parse_args())
    out, only = arguments.pop("out"), arguments.pop("only") or GROUPS
    options, file = Options(**arguments), out / "elastic.json"
    found: dict[str, Any] = {}
    if file.exists() and (earlier := json.loads(file.read_text()))["options"] == asdict(options):
        found = {name: each for name, each in earlier["groups"].items() if name not in only}
    for name, each in compare(options, {name: GROUPS[name] for name in only}):
        print(name, json.dumps(each), flush=True)
        found[name] = each
        found = {name: found[name] for name in GROUPS if name in found}
        file.write_text(json.dumps({"options": asdict(options), "groups": found}, indent=1) + "\n")
        (out / "elastic.md").write_text(page(options, found))


if __name__ == "__main__":
    main()
