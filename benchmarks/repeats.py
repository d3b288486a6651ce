"""How often a job computes what it could remember: texts, their keys and values, modulations.

`benchmarks.counts` runs a small checkpoint's long video with guidance and a prompt for each segment, twice,
then with one prompt for all, and counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve

PROMPTS = ("a red ball", "a blue ball", "a green ball")


def repeats(checkpoint: Path) -> list[dict[str, int]]:
    """Count the work of three jobs of three segments: a prompt for each, the same again, one for all."""
    pipeline = Pipeline.load(checkpoint, torch.float32)
    jobs = []
    for prompts in (PROMPTS, PROMPTS, PROMPTS[:1]):
        params = GenerationParams(num_segments=len(PROMPTS), num_inference_steps=2)
        plan = resolve(params, Inputs(num_prompts=len(prompts)), pipeline.limits)
        request = Request(plan, prompts, seed=0)
        with counted(pipeline) as counts:
            for _event in pipeline.generate(request):
                pass
        jobs.append(dict(counts))
    return jobs


@contextmanager
def counted(pipeline: Pipeline) -> Iterator[Counter[str]]:
    """Count what the pipeline computes meanwhile; of what every block does, the first block's."""
    assert pipeline.conditioner
    block = pipeline.dit.blocks[0]
    modules = {
        "texts encoded": pipeline.conditioner.text._encoder,  # noqa: SLF001 to count, not to use
        "texts projected": pipeline.dit.y_embedder,
        "cross-attention keys and values": block.cross_attn.kv_linear,
        "modulations of a block": block.adaLN_modulation,
        "forwards": pipeline.dit,
    }
    counts: Counter[str] = Counter(dict.fromkeys(modules, 0))
    with ExitStack() as until_then:
        for name, module in modules.items():
            handle = module.register_forward_hook(_counter(counts, name))
            until_then.callback(handle.remove)
        yield counts


def _counter(counts: Counter[str], name: str) -> Callable[..., None]:
    def count(_module: nn.Module, _given: object, _result: object) -> None:
        counts[name] += 1

    return count
