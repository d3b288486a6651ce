"""Measure how well a checkpoint of the pocket dataset follows its prompts.

`make quality` runs `python -m training.quality CHECKPOINT OUT` on one rank and, under `torchrun`, on two
that share each video. `model.pipeline` makes the videos as in the server, and `training.evaluation` scores
them. `OUT` gets `quality.json`, `quality.md` and a contact sheet; results of earlier runs in other modes or
on other numbers of ranks are kept. A test repeats the first trials and compares them with the committed
`pocket/quality.json`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from model.parallel.mesh import join, leave
from model.pipeline.events import Frames
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.spec.geometry import Clip, Size
from model.spec.memory import Quantize
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from training.contact_sheet import EvaluatedVideo, contact_sheet
from training.evaluation import TASKS, Scores, Trial, VideoRequest, VideoTensor

MODES = {
    "standard": GenerationParams(),
    "distilled": GenerationParams(distilled=True),
    "refined": GenerationParams(refine=True),
}
DEFAULT_TASKS = list(TASKS)[:-1]  # without long videos, each of which takes as long as ten others
NUM_REGRESSION_TRIALS = 4  # the first trials, which a test repeats
ROUNDING = 0.01
JOIN_TIMEOUT_S = 600.0

Table = dict[str, dict[str, float]]


def main() -> None:
    """Generate and score all videos, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=12, help="trials of each task in each mode")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--tasks", nargs="*", default=DEFAULT_TASKS, choices=TASKS)
    parser.add_argument(
        "--quantize", default="none", choices=get_args(Quantize), help="as of python -m model"
    )
    arguments = parser.parse_args()
    parallel = join("cpu", None, JOIN_TIMEOUT_S)
    pipeline = Pipeline.load(arguments.checkpoint, torch.float32, parallel, quantize=arguments.quantize)
    videos: list[EvaluatedVideo] = []
    for mode in arguments.modes:
        for task in arguments.tasks:
            videos += measure(pipeline, mode, task, range(arguments.count))
            if parallel.is_leader:
                write(videos, arguments.out, parallel.size)
    if parallel.is_leader:
        sys.stdout.write((arguments.out / "quality.md").read_text())
    leave()


def measure(pipeline: Pipeline, mode: str, task: str, indices: Sequence[int]) -> Iterator[EvaluatedVideo]:
    """Run the trials with these indices. Ranks other than the leader yield nothing."""
    for trial in map(Trial.from_index, indices):
        requests, started_s = TASKS[task].requests(trial), time.perf_counter()
        made = (generate(pipeline, MODES[mode], request, trial.seed) for request in requests)
        videos = [video for video in made if len(video)]
        elapsed_s = (time.perf_counter() - started_s) / len(requests)
        if videos:
            correct, scores = TASKS[task].evaluate(trial, videos)
            if TASKS[task].time_score:
                scores = {**scores, TASKS[task].time_score: elapsed_s}
            prompts = " → ".join(request.prompt for request in requests)
            frames = torch.cat(videos, dim=2)
            yield EvaluatedVideo(mode, task, trial.seed, prompts, correct, scores, frames)


def generate(pipeline: Pipeline, mode: GenerationParams, request: VideoRequest, seed: int) -> VideoTensor:
    """Generate a video with values in [0, 1]. Ranks other than the leader return no frames."""
    params = mode.model_copy(update={"num_segments": request.num_segments})
    image, video = request.image, request.video
    inputs = Inputs(
        image=None if image is None else Size(*image.shape[:2]),
        video=None if video is None else Clip(video.shape[1], video.shape[2], len(video)),
    )
    plan = resolve(params, inputs, pipeline.limits)
    events = pipeline.generate(Request(plan, (request.prompt,), seed, image=image, video=video))
    chunks = [event.frames for event in events if isinstance(event, Frames) and event.frames is not None]
    return torch.cat(chunks).float() / 255 if chunks else torch.empty(0, 0, 0, 3)


def tabulate(videos: Sequence[EvaluatedVideo], num_ranks: int = 1) -> Table:
    """Return for each mode the mean of every score over the trials that have it."""
    table: Table = {}
    for mode in dict.fromkeys(video.mode for video in videos):
        columns: dict[str, list[float]] = {}
        for video in videos:
            for name, score in video.scores.items() if video.mode == mode else ():
                columns.setdefault(name, []).append(score)
        row = mode if num_ranks == 1 else f"{mode}, {num_ranks} ranks"
        table[row] = {name: round(sum(scores) / len(scores), 2) for name, scores in columns.items()}
    return table


def regressions(now: Scores, before: Scores, num_trials: int) -> list[str]:
    """Return the scores that are worse than before.

    Tolerated are one trial (for percentages), 1 dB, 1 pixel and 1 level. Times are not compared.
    """
    allowed = {"%": 100 / num_trials + ROUNDING, "dB": 1, "px": 1, "levels": 1}
    better = {"%": 1, "dB": 1, "px": -1, "levels": -1}
    return [
        f"{name} is {score:g}, was {before[name]:g}"
        for name, score in now.items()
        if (unit := name.rpartition(" ")[2]) in allowed
        and better[unit] * (before[name] - score) > allowed[unit]
    ]


def write(videos: Sequence[EvaluatedVideo], out: Path, num_ranks: int) -> None:
    """Write the table as JSON and Markdown, and the contact sheet."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "quality.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    first = [video for video in videos if video.trial < NUM_REGRESSION_TRIALS]
    now = {"all": tabulate(videos, num_ranks), f"first {NUM_REGRESSION_TRIALS}": tabulate(first, num_ranks)}
    tables = {name: _merged(before.get(name, {}), table) for name, table in now.items()}
    path.write_text(json.dumps(tables, indent=2) + "\n")
    (out / "quality.md").write_text(markdown(tables["all"]))
    page = "sheet.html" if num_ranks == 1 else f"sheet-{num_ranks}-ranks.html"
    (out / page).write_text(contact_sheet(videos))


def _merged(before: Table, now: Table) -> Table:
    return {row: {**before.get(row, {}), **now.get(row, {})} for row in {**before, **now}}


def markdown(table: Mapping[str, Scores]) -> str:
    """Return a Markdown table with a row for each mode."""
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for mode, row in table.items():
        cells = (f"{row[name]:.1f}" if name in row else "" for name in columns)
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
