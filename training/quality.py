"""How well a checkpoint of the pocket world does what it is told: a table, and a page to look at.

`make quality` runs `python -m training.quality CHECKPOINT OUT`, alone and under `torchrun`, where the ranks
share each film. The films are made by `model.pipeline` as the server makes them, and `training.judge` looks
at them. `OUT` gets `quality.json` and `quality.md`, where other modes and numbers of ranks stay from earlier
runs, and a page. A test measures the first trials again and compares them with the committed `quality.json`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.parallel.mesh import join, leave
from model.pipeline.events import Frames
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.spec.plan import GenerationParams
from model.spec.shapes import Clip, Size, resolve
from training.sheet import Video, sheet
from training.trials import TASKS, Film, Order, Scores, Trial

MODES = {
    "standard": GenerationParams(),
    "distilled": GenerationParams(distilled=True),
    "refined": GenerationParams(refine=True),
}
USUAL = list(TASKS)[:-1]  # a long video takes as much as ten others
FIRST = 4  # trials that a test repeats
ROUNDING = 0.01
WAIT_FOR_RANKS_S = 600.0

Table = dict[str, dict[str, float]]


def main() -> None:
    """Make all films and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=12, help="trials of each task in each mode")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--tasks", nargs="*", default=USUAL, choices=TASKS)
    options = parser.parse_args()
    parallel = join("cpu", None, WAIT_FOR_RANKS_S)
    pipeline = Pipeline.load(options.checkpoint, torch.float32, parallel)
    videos: list[Video] = []
    for mode in options.modes:
        for task in options.tasks:
            videos += measure(pipeline, mode, task, range(options.count))
            if parallel.is_leader:
                write(videos, options.out, parallel.size)
    if parallel.is_leader:
        sys.stdout.write((options.out / "quality.md").read_text())
    leave()


def measure(pipeline: Pipeline, mode: str, task: str, trials: Sequence[int]) -> Iterator[Video]:
    """What was made in trials of these numbers; nothing on ranks that lead nobody."""
    for trial in map(Trial.number, trials):
        orders, began_s = TASKS[task].orders(trial), time.perf_counter()
        films = [film for order in orders if len(film := make(pipeline, MODES[mode], order, trial.seed))]
        took_s = (time.perf_counter() - began_s) / len(orders)
        if films:
            right, scores = TASKS[task].judge(trial, films)
            timed = {TASKS[task].time: took_s} if TASKS[task].time else {}
            told = " → ".join(order.told for order in orders)
            yield Video(mode, task, trial.seed, told, right, {**scores, **timed}, torch.cat(films, dim=2))


def make(pipeline: Pipeline, mode: GenerationParams, order: Order, seed: int) -> Film:
    """The film in [0, 1]; without any frames on ranks that lead nobody."""
    mode = replace(mode, num_segments=order.num_segments)
    if order.image is not None:
        mode = replace(mode, image=Size(*order.image.shape[:2]))
    if order.video is not None:
        num_frames, height, width, _ = order.video.shape
        mode = replace(mode, video=Clip(height, width, num_frames))
    plan = resolve(mode, pipeline.limits)
    request = Request(plan, (order.told,), seed, image=order.image, video=order.video)
    events = pipeline.generate(request)
    chunks = [event.frames for event in events if isinstance(event, Frames) and event.frames is not None]
    return torch.cat(chunks).float() / 255 if chunks else torch.empty(0, 0, 0, 3)


def tabulate(videos: Sequence[Video], num_ranks: int = 1) -> Table:
    """For each mode the mean of every score, over all trials that have it."""
    table: Table = {}
    for mode in dict.fromkeys(video.mode for video in videos):
        columns: dict[str, list[float]] = {}
        for video in videos:
            for name, score in video.scores.items() if video.mode == mode else ():
                columns.setdefault(name, []).append(score)
        row = mode if num_ranks == 1 else f"{mode}, {num_ranks} ranks"
        table[row] = {name: round(sum(scores) / len(scores), 2) for name, scores in columns.items()}
    return table


def behind(now: Scores, before: Scores, films: int) -> list[str]:
    """The scores that are worse than they were, by more than one film in so many, one dB, pixel or level."""
    allowed = {"%": 100 / films + ROUNDING, "dB": 1, "px": 1, "levels": 1}
    better = {"%": 1, "dB": 1, "px": -1, "levels": -1}
    return [
        f"{name} is {score:g}, was {before[name]:g}"
        for name, score in now.items()
        if (unit := name.rpartition(" ")[2]) in allowed
        and better[unit] * (before[name] - score) > allowed[unit]
    ]


def write(videos: Sequence[Video], out: Path, num_ranks: int) -> None:
    """The table as JSON and Markdown, and the page."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "quality.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    first = [video for video in videos if video.number < FIRST]
    tables = {
        "all": _merged(before.get("all", {}), tabulate(videos, num_ranks)),
        f"first {FIRST}": _merged(before.get(f"first {FIRST}", {}), tabulate(first, num_ranks)),
    }
    path.write_text(json.dumps(tables, indent=2) + "\n")
    (out / "quality.md").write_text(markdown(tables["all"]))
    (out / ("sheet.html" if num_ranks == 1 else f"sheet-{num_ranks}-ranks.html")).write_text(sheet(videos))


def _merged(before: Table, now: Table) -> Table:
    return {row: {**before.get(row, {}), **now.get(row, {})} for row in {**before, **now}}


def markdown(table: Mapping[str, Scores]) -> str:
    """A table with a row for each mode."""
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for mode, row in table.items():
        cells = (f"{row[name]:.1f}" if name in row else "" for name in columns)
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
