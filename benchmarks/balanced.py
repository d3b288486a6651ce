"""What approximations save and cost: `python -m benchmarks.balanced [--checkpoint DIR] [--out FOLDER]`.

A guided job from text for each of the checkpoint's example prompts, exact, then with the step cache at
several thresholds, and all of it again in fp8 and int8: blocks and FLOPs that are run, how far latents and
decoded frames are from the exact ones, and on a GPU the seconds of the steps. The checkpoint is `pocket`,
unless another is named: nobody knows how alike the steps of random weights should be. Writes `balanced.json`
and `balanced.md`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from benchmarks.formulas import forward_flops
from benchmarks.machine import torch_machine
from benchmarks.timing import seconds
from model.parallel.mesh import ContextParallel
from model.pipeline.events import Event, Frames, Latents
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.spec.geometry import VAE_STRIDE, latent_frames
from model.spec.memory import Quantize
from model.spec.params import GenerationParams
from model.spec.plan import Plan
from model.spec.resolve import Inputs, resolve
from model.text import MAX_TOKENS
from model.transformer.compile import fuse
from model.transformer.dit import Dit
from model.transformer.token_layout import Window

SEED = 1
THRESHOLDS = (0.05, 0.1, 0.2, 0.4)
TEXTS = 2  # in each forward, with guidance

Row = dict[str, float | None]


@dataclass(frozen=True)
class Made:
    """Jobs: their latents and frames (floats in [0, 1]), what was run for them, seconds up to the latents."""

    latents: Tensor
    frames: Tensor
    counts: Mapping[str, int]
    flops: int
    taken_s: float

    def beside(self, exact: Made) -> Row:
        """Return what was saved and lost, compared with the exact jobs."""
        error = (self.latents - exact.latents).norm() / exact.latents.norm()
        row: Row = {
            "blocks run, %": 100 * self.counts["blocks"] / exact.counts["blocks"],
            "FLOPs run, %": 100 * self.flops / exact.flops,
            "latents, relative error": float(error),
            "frames, PSNR in dB": _psnr(self.frames, exact.frames),
        }
        if self.latents.is_cuda:
            row |= {"to latents, s": self.taken_s, "factor": exact.taken_s / self.taken_s}
        return row


def make(pipeline: Pipeline, plan: Plan) -> Made:
    """Run a job for each example prompt, counting and measuring."""
    made: list[Event] = []
    taken_s = 0.0
    with counted(pipeline.dit) as counts:
        for prompt in pipeline.limits.example_prompts:
            events = pipeline.generate(Request(plan, (prompt,), SEED))
            steps = partial(made.extend, _up_to_latents(events))
            taken_s += seconds(steps, pipeline.parallel.device)
            made.extend(events)
    latents = [event.latents for event in made if isinstance(event, Latents)]
    frames = [event.frames for event in made if isinstance(event, Frames) and event.frames is not None]
    flops = _flops(pipeline.dit, plan, counts)
    return Made(torch.cat(latents), torch.cat(frames).float() / 255, counts, flops, taken_s)


def _up_to_latents(events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        yield event
        if isinstance(event, Latents):
            return


@contextmanager
def counted(dit: Dit) -> Iterator[Counter[str]]:
    """Count forwards, and blocks that are run in them."""
    counts: Counter[str] = Counter()

    def count(module: nn.Module, _given: object) -> None:
        counts["forwards" if module is dit else "blocks"] += 1

    hooks = [module.register_forward_pre_hook(count) for module in (dit, *dit.blocks)]
    yield counts
    for hook in hooks:
        hook.remove()


def compare(pipelines: Mapping[str, Pipeline], steps: int) -> dict[str, Row]:
    """Every way to make the jobs, by its name, beside the first, which is exact."""
    limits = next(iter(pipelines.values())).limits
    plan = resolve(GenerationParams(num_inference_steps=steps), Inputs(), limits)
    rows: dict[str, Row] = {}
    exact: Made | None = None
    for name, pipeline in pipelines.items():
        make(pipeline, plan.model_copy(update={"num_inference_steps": 1}))  # warms up
        for threshold in (None, *THRESHOLDS):
            made = make(pipeline, plan.model_copy(update={"step_cache": threshold}))
            exact = exact or made
            title = name if threshold is None else f"{name}, step cache {threshold}"
            rows[title] = made.beside(exact)
            print(title, rows[title], flush=True)
    return rows


def weight_bytes(dit: Dit) -> int:
    """Of all parameters and scales."""
    return sum(tensor.nbytes for tensor in (*dit.parameters(), *dit.buffers()))


def _flops(dit: Dit, plan: Plan, counts: Mapping[str, int]) -> int:
    """Of each forward what is done around its blocks, and the blocks that were run."""
    sides = plan.height // VAE_STRIDE, plan.width // VAE_STRIDE
    window = Window(latent_frames(plan.num_frames), *sides)
    around, with_one = (
        forward_flops(replace(dit.config, depth=depth), window, TEXTS, MAX_TOKENS).total for depth in (0, 1)
    )
    return counts["forwards"] * around + counts["blocks"] * (with_one - around)


def _psnr(frames: Tensor, exact: Tensor) -> float | None:
    """Of 8-bit frames; None where all are the same."""
    error = float((frames - exact).square().mean())
    return -10 * math.log10(error) if error else None


def load(checkpoint: Path) -> dict[str, Pipeline]:
    """Return the checkpoint as it is and quantised, loaded as a worker loads it."""
    on_cuda = torch.cuda.is_available()
    parallel = ContextParallel(torch.device("cuda" if on_cuda else "cpu"))
    dtype = torch.bfloat16 if on_cuda else torch.float32
    pipelines = {
        "exact" if quantize == "none" else quantize: Pipeline.load(
            checkpoint, dtype, parallel, quantize=quantize
        )
        for quantize in get_args(Quantize)
    }
    for pipeline in pipelines.values():
        fuse(pipeline.dit, "auto")
    return pipelines


def report(found: Mapping[str, object], rows: Mapping[str, Row]) -> str:
    """Return a page with a table."""
    figures = list(next(iter(rows.values())))
    lines = [["", *figures], ["---"] * (1 + len(figures))]
    lines += [[title, *(_shown(row[figure]) for figure in figures)] for title, row in rows.items()]
    told = "\n".join(f"- {name}: {value}" for name, value in found.items())
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Balanced and quantised, beside exact\n\n{told}\n\n{table}\n\n`python -m benchmarks.balanced`\n"


def _shown(value: float | None) -> str:
    return "the same" if value is None else f"{value:.3g}" if value < 1 else f"{value:.1f}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.balanced", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("pocket"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    pipelines = load(options.checkpoint)
    rows = compare(pipelines, options.steps)
    base, in_int8 = pipelines["exact"], pipelines["int8"]
    found = {
        "checkpoint": options.checkpoint.name,
        "steps": options.steps,
        "blocks": base.dit.config.depth,
        "weights in fp8 or int8, of those without": round(
            weight_bytes(in_int8.dit) / weight_bytes(base.dit), 3
        ),
        **torch_machine(base.parallel.device),
    }
    (options.out / "balanced.json").write_text(json.dumps({**found, "jobs": rows}, indent=1) + "\n")
    (options.out / "balanced.md").write_text(report(found, rows))


if __name__ == "__main__":
    main()
