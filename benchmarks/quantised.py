"""What the judge thinks of quantised weights: `python -m benchmarks.quantised [--count N] [--out FOLDER]`.

The videos of `training.evaluation` are made with the pocket checkpoint as it is, in fp8 and in int8. Its
judge scores all of them, and the frames are compared with the exact ones. On a CPU, fp8 is its definition:
quantised values that are multiplied in fp32. Writes `quantised.json` and `quantised.md` after each task, so
that an interrupted run leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.balanced import load
from benchmarks.machine import Machine, torch_machine
from jobs.settings import POCKET
from model.pipeline.pipeline import Pipeline
from training.contact_sheet import EvaluatedVideo
from training.quality import DEFAULT_TASKS, MODES, measure

Videos = Mapping[str, Sequence[EvaluatedVideo]]
"""The videos of the same trials by the precision that made them; the first is `exact`."""


@dataclass(frozen=True)
class Judged:
    """The videos of one task and mode in one precision.

    Attributes:
        trials: how many of them there are.
        right: properties of the videos that are as their prompts say, of `properties`.
        differing: properties of which the judge thinks otherwise than of the exact video.
        psnr_db: of the frames of all videos beside the exact ones, None where they are the same.
    """

    mode: str
    task: str
    precision: str
    trials: int
    properties: int
    right: int
    differing: int
    psnr_db: float | None


def judge(videos: Videos) -> Iterator[Judged]:
    """Yield what the judge finds in each precision."""
    exact = videos["exact"]
    for precision, made in videos.items():
        pairs = list(zip(made, exact, strict=True))
        yield Judged(
            made[0].mode,
            made[0].task,
            precision,
            len(made),
            sum(len(video.correct) for video in made),
            sum(sum(video.correct.values()) for video in made),
            sum(
                video.correct[name] != right
                for video, other in pairs
                for name, right in other.correct.items()
            ),
            _psnr_db(pairs),
        )


def measured(
    pipelines: Mapping[str, Pipeline], modes: Sequence[str], tasks: Sequence[str], count: int
) -> Iterator[Judged]:
    """Make and judge the videos of the first trials of each task in each mode."""
    for mode in modes:
        for task in tasks:
            videos = {name: list(measure(each, mode, task, range(count))) for name, each in pipelines.items()}
            yield from judge(videos)


def report(found: Mapping[str, object], rows: Sequence[Judged]) -> str:
    """Return a page with a table."""
    right = {(row.mode, row.task): row.right for row in rows if row.precision == "exact"}
    lines = [["mode", "task", "trials", "precision", "right", "of exact", "otherwise judged", "frames, PSNR"]]
    lines.append(["---"] * len(lines[0]))
    lines += [
        [
            *(row.mode, row.task, str(row.trials), row.precision),
            f"{row.right} of {row.properties}",
            f"{100 * row.right / right[row.mode, row.task]:.1f} %",
            str(row.differing),
            "the same" if row.psnr_db is None else f"{row.psnr_db:.1f} dB",
        ]
        for row in rows
    ]
    told = "\n".join(f"- {name}: {value}" for name, value in found.items())
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    totals = "\n".join(f"- {line}" for line in _totals(rows))
    return f"# Quantised weights before the judge\n\n{told}\n\nAll together:\n\n{totals}\n\n{table}\n"


def _totals(rows: Sequence[Judged]) -> Iterator[str]:
    exact = sum(row.right for row in rows if row.precision == "exact")
    for precision in dict.fromkeys(row.precision for row in rows):
        of_precision = [row for row in rows if row.precision == precision]
        right, properties, differing = (
            sum(getattr(row, name) for row in of_precision) for name in ("right", "properties", "differing")
        )
        yield (
            f"{precision}: {right} of {properties} properties are right, {100 * right / exact:.2f} % of "
            f"exact; {differing} are judged otherwise than exact"
        )


def _psnr_db(pairs: Sequence[tuple[EvaluatedVideo, EvaluatedVideo]]) -> float | None:
    errors = [(video.frames - exact.frames).square().mean().item() for video, exact in pairs]
    error = sum(errors) / len(errors)
    return -10 * math.log10(error) if error else None


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantised", description=__doc__)
    parser.add_argument("--count", type=int, default=12, help="trials of each task in each mode")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--tasks", nargs="*", default=DEFAULT_TASKS, choices=DEFAULT_TASKS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    pipelines = load(POCKET)
    found = {
        "command": f"`python -m benchmarks.quantised --count {options.count}`",
        "checkpoint": POCKET.name,
        **torch_machine(pipelines["exact"].parallel.device),
        "processor": Machine.here().cpu,
    }
    rows: list[Judged] = []
    for row in measured(pipelines, options.modes, options.tasks, options.count):
        rows.append(row)
        print(row, flush=True)
        (options.out / "quantised.json").write_text(
            json.dumps({**found, "judged": [asdict(each) for each in rows]}, indent=1) + "\n"
        )
        (options.out / "quantised.md").write_text(report(found, rows))


if __name__ == "__main__":
    main()
