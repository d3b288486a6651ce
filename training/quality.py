"""How well a checkpoint of the pocket world does what it is told: a table, and a page to look at.

`python -m training.quality CHECKPOINT OUT` makes videos of captions that training never saw, by
`model.pipeline` as the server does, lets `training.judge` look at them, and writes `quality.json`,
`quality.md` and `sheet.html`. Under `torchrun` the ranks share each video. The fast version of it in the
tests calls `measure`.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.parallel import join, leave
from model.pipeline import Pipeline
from model.pixels import to_bytes
from model.plan import Wish
from model.request import Frames, Request
from model.shapes import Clip, Size, settle
from training.captions import Told, caption, read
from training.judge import look, regions
from training.sheet import Video, sheet
from training.world import HEIGHT, WIDTH, Placed, Scene, draw, place, random_scene

SEED = 1_000_003  # far from those that training draws from
PROPERTIES = ("colour", "shape", "motion", "count")
WAIT_FOR_RANKS_S = 600.0

Make = Callable[[Pipeline, Scene, np.random.Generator, int], Video | None]


@dataclass(frozen=True)
class Given:
    """What a video begins with, if anything: 8-bit frames."""

    image: Tensor | None = None
    video: Tensor | None = None


def main() -> None:
    """Make all videos and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--modes", nargs="*", default=list(MODES))
    options = parser.parse_args()
    parallel = join("cpu", None, WAIT_FOR_RANKS_S)
    pipeline = Pipeline.load(options.checkpoint, torch.float32, parallel)
    videos = [video for mode in options.modes for video in measure(pipeline, mode, options.count)]
    if parallel.is_leader:
        write(videos, options.out)
    leave()


def measure(pipeline: Pipeline, mode: str, count: int) -> Iterator[Video]:
    """Videos of one mode, of as many captions; nothing on ranks that lead nobody."""
    for index in range(count):
        random = np.random.default_rng((SEED, index))
        scene = random_scene(random, pair_share=0.0)
        video = MODES[mode](pipeline, scene, random, index)
        if video is not None:
            yield video


def table(videos: list[Video]) -> dict[str, dict[str, float]]:
    """For each mode the share of videos in which a property is right, and the mean of each measure."""
    rows: dict[str, dict[str, float]] = {}
    for mode in dict.fromkeys(video.mode for video in videos):
        ours = [video for video in videos if video.mode == mode]
        row = {name: 100 * float(np.mean([video.right[name] for video in ours])) for name in ours[0].right}
        row |= {name: float(np.mean([video.measures[name] for video in ours])) for name in ours[0].measures}
        rows[mode] = row
    return rows


def judged(told: Told, seen: Told) -> dict[str, bool]:
    """Which properties of what was told are seen; one that was not told is right."""
    pairs = list(zip(told.things, seen.things, strict=False))
    same = len(told.things) == len(seen.things)
    right = {
        name: same and all(getattr(a, name) in (None, getattr(b, name)) for a, b in pairs)
        for name in PROPERTIES[:3]
    }
    return {**right, "count": same}


def _text_to_video(mode: str, wish: Wish) -> Make:
    def make(pipeline: Pipeline, scene: Scene, random: np.random.Generator, seed: int) -> Video | None:
        told = caption(scene, random)
        frames = _film(pipeline, wish, told, seed)
        if frames is None:
            return None
        return Video(mode, told, judged(read(told), look(frames)), frames)

    return make


def _image_to_video(pipeline: Pipeline, scene: Scene, random: np.random.Generator, seed: int) -> Video | None:
    told = caption(scene, random)
    image = to_bytes(draw(place(scene, random), torch.zeros(1)))[0]
    frames = _film(pipeline, Wish(image=Size(HEIGHT, WIDTH)), told, seed, Given(image=image))
    if frames is None:
        return None
    psnr = -10 * math.log10(float((frames[0] - image.float() / 255).square().mean()))
    return Video(
        "image to video", told, judged(read(told), look(frames)), frames, {"first frame PSNR, dB": psnr}
    )


def _continuation(pipeline: Pipeline, scene: Scene, random: np.random.Generator, seed: int) -> Video | None:
    told, placed = caption(scene, random), place(scene, random)
    clip = to_bytes(draw(placed, torch.arange(17.0)))
    frames = _film(pipeline, Wish(video=Clip(HEIGHT, WIDTH, 17)), told, seed, Given(video=clip))
    if frames is None:
        return None
    held = pipeline.limits.num_condition_frames
    new = frames[held:]
    right = judged(read(told), look(new))
    return Video("continuation", told, right, frames, {"join error, px": _join_error(placed, frames, held)})


def _join_error(placed: Placed, frames: Float[Tensor, "n height width 3"], held: int) -> float:
    """How far the first new frame's thing is from where the world would have it."""
    true = regions(draw(placed, torch.tensor([17.0])))[0]
    seen = regions(frames[held : held + 1])[0]
    if len(true) != 1 or not seen:
        return float(WIDTH)
    return min(
        _apart(true[0].row, thing.row, HEIGHT) + _apart(true[0].column, thing.column, WIDTH) for thing in seen
    )


def _apart(a: float, b: float, around: int) -> float:
    return abs((a - b + around / 2) % around - around / 2)


def _film(pipeline: Pipeline, wish: Wish, told: str, seed: int, given: Given | None = None) -> Tensor | None:
    """The film in [0, 1], on the leader alone."""
    given = given or Given()
    plan = settle(wish, pipeline.limits)
    request = Request(plan=plan, prompts=(told,), seed=seed, image=given.image, video=given.video)
    events = pipeline.generate(request)
    chunks = [event.frames for event in events if isinstance(event, Frames) and event.frames is not None]
    return torch.cat(chunks).float() / 255 if chunks else None


MODES = {
    "standard": _text_to_video("standard", Wish()),
    "distilled": _text_to_video("distilled", Wish(distilled=True)),
    "refined": _text_to_video("refined", Wish(refine=True)),
    "image to video": _image_to_video,
    "continuation": _continuation,
}


def write(videos: list[Video], out: Path) -> None:
    """The table as JSON and Markdown, and the page."""
    out.mkdir(parents=True, exist_ok=True)
    rows = table(videos)
    (out / "quality.json").write_text(json.dumps(rows, indent=2) + "\n")
    (out / "quality.md").write_text(markdown(rows))
    (out / "sheet.html").write_text(sheet(videos))
    sys.stdout.write(markdown(rows))


def markdown(rows: dict[str, dict[str, float]]) -> str:
    """A table with a row for each mode."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for mode, row in rows.items():
        cells = (f"{row[name]:.1f}" if name in row else "" for name in columns)
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
