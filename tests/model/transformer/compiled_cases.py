"""The compiled transformer beside the plain one, in a process of its own, where no call's types are checked.

`python -m tests.model.transformer.compiled_cases BACKEND OUT.json` compiles with that backend of
torch.compile, in fp32
and bf16, and writes how far the results are apart and how often a part was compiled.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from model.parallel.mesh import SINGLE
from model.pipeline.warm_up import stage_shapes, warm_up
from model.spec.limits import load_limits
from model.spec.memory import Quantize
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.transformer.compile import fuse
from model.transformer.config import DitConfig
from model.transformer.dit import ConditionKVs, Dit
from model.transformer.quantise import quantise
from model.transformer.step_cache import StepCache
from model.transformer.token_layout import Window, build_layout
from tests.model.parity_cases import PARITY
from tests.model.random_dit import random_dit

SMALL = DitConfig(
    hidden_size=64,
    num_heads=4,
    depth=3,
    caption_channels=16,
    adaln_tembed_dim=32,
    frequency_embedding_size=32,
)
PLAN = resolve(
    GenerationParams(height=64, width=96, num_frames=9),
    Inputs(),
    replace(load_limits(PARITY / "checkpoint"), min_side=16),
)
SHAPES = {
    "text": Window(3, 8, 12),
    "image": Window(3, 8, 12, num_condition=1),
    "continuation": Window(2, 8, 12, first=1),
}


def main(backend: str, path: str) -> None:
    """Everything, into a file."""
    torch.set_num_threads(1)
    found = {
        "float32": case(torch.float32, backend, SHAPES),
        "bfloat16": case(torch.bfloat16, backend, {"image": SHAPES["image"]}),
        "fp8": approximated(backend, "fp8"),
        "int8": approximated(backend, "int8"),
    }
    Path(path).write_text(json.dumps(found))


def case(dtype: torch.dtype, backend: str, shapes: dict[str, Window]) -> dict[str, object]:
    """Differences for each shape, and how many graphs were made of three parts."""
    dit = random_dit(SMALL, dtype)
    plain = {name: velocity(dit, window) for name, window in shapes.items()}
    counters.clear()
    with patch("model.transformer.compile.torch.compile", partial(torch.compile, backend=backend)):
        fuse(dit, "on")
    found = {name: velocity(dit, window) for name, window in shapes.items()}
    graphs = counters["stats"]["unique_graphs"]
    for shape in stage_shapes(PLAN, Inputs()):
        warm_up(dit, shape, 5, SINGLE)
    return {
        "differences": {name: apart(found[name], plain[name]) for name in shapes},
        "graphs": graphs,
        "graphs after warming both batches": counters["stats"]["unique_graphs"],
    }


def approximated(backend: str, quantize: Quantize) -> dict[str, float]:
    """Differences of a step with quantised weights, and of one after it that reuses what later blocks add."""
    dit, window = random_dit(SMALL, torch.float32), SHAPES["image"]
    quantise(dit, quantize)
    plain = velocity(dit, window)
    with patch("model.transformer.compile.torch.compile", partial(torch.compile, backend=backend)):
        fuse(dit, "on")
    steps = StepCache(0.5, SINGLE)
    found = {
        "whole": apart(velocity(dit, window, steps), plain),
        "in part": apart(velocity(dit, window, steps), plain),
    }
    assert steps.reused
    return found


def velocity(dit: Dit, window: Window, steps: StepCache | None = None) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, *window[:3], generator=draw)
    clean = torch.randn(1, 16, 1, *window[1:3], generator=draw)
    text = dit.text_kv(torch.randn(1, 5, 16, generator=draw), torch.tensor([[1, 1, 1, 0, 0]]))
    layout = build_layout(SMALL, window, SINGLE, sparse=False)
    timesteps = torch.full((1, window.num_frames), 500.0)
    return dit(latents, timesteps, layout, text, past(dit, window, clean), steps)


def past(dit: Dit, window: Window, clean: Tensor) -> ConditionKVs | None:
    if not window.first:
        return None
    return dit.condition_kv(clean, build_layout(SMALL, Window(1, *window[1:3]), SINGLE, sparse=False))


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


if __name__ == "__main__":
    main(*sys.argv[1:])
