"""Changes of LoRA and bytes read from the checkpoint, counted over several jobs and over a long video."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from model.io.checkpoint import Weights
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.transformer.lora import LoraMerger
from tests.model.rank_jobs import latents_of

BASE: dict[str, object] = {}
DISTILLED, REFINED = {"distilled": True}, {"refine": True, "spatial_refine_only": True}
MIXED = [DISTILLED, DISTILLED, REFINED, BASE, REFINED, DISTILLED, BASE]  # with LONG, every change there is
LONG = {**DISTILLED, **REFINED, "num_segments": 2, "num_condition_frames": 1}


@pytest.fixture
def counts(monkeypatch) -> Counter[str]:
    """Count changes of LoRA, and the bytes of tensors that they read from the checkpoint."""
    counts: Counter[str] = Counter()
    read, switch = Weights.read, LoraMerger.switch

    def counting_read(weights, name, like, device):
        tensor = read(weights, name, like, device)
        counts["bytes"] += tensor.nbytes
        return tensor

    def counting_switch(merger, name):
        counts["switches"] += name != merger.active
        switch(merger, name)

    monkeypatch.setattr(Weights, "read", counting_read)
    monkeypatch.setattr(LoraMerger, "switch", counting_switch)
    return counts


def run(checkpoint, memory, counts, jobs):
    """Run jobs. Return their latents, after the counts of the preparation were dropped."""
    pipeline = Pipeline.load(checkpoint, torch.float32)
    if memory:
        pipeline.lora.prepare(memory)
    counts.clear()
    defaults = {"num_frames": 5, "num_inference_steps": 1}
    requests = []
    for job in jobs:
        plan = resolve(GenerationParams(**{**defaults, **job}), Inputs(), pipeline.limits)
        requests.append(Request(plan, ("a cat",), seed=3))
    return latents_of(pipeline, requests)


@pytest.mark.parametrize(("jobs", "switches"), [(MIXED, 7), ([LONG], 4)])
def test_changes_of_lora_read_nothing_once_all_are_prepared(
    tiny_checkpoint, weight_memory, counts, jobs, switches
):
    from_files = run(tiny_checkpoint, None, counts, jobs)
    assert counts["switches"] == switches
    assert counts["bytes"] > 0
    from_memory = run(tiny_checkpoint, weight_memory, counts, jobs)
    assert counts == {"switches": switches}
    for expected, ours in zip(from_files, from_memory, strict=True):
        assert expected
        assert all(map(torch.equal, expected, ours))
