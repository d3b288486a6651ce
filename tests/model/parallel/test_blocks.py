"""A job that moves between blocks of a world has the latents of one that ran undisturbed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.parallel.mesh import SINGLE, ContextParallel
from model.pipeline.events import Latents
from model.pipeline.request import Request
from model.spec.errors import GroupError
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from tests.model.rank_jobs import Run

ATOL = 1e-5
WIDTHS = [[Run(0, 0, 1, 1)], [Run(0, 2, 2, 1)], [Run(0, 1, 1, 1)], [Run(0, 0, 4)]]
"""A job runs a step on rank 0, on ranks 2 and 3, and on rank 1, and the rest on all four."""

OPTIONS: dict[str, dict[str, Any]] = {
    "guided": {"num_inference_steps": 5},
    "distilled": {"num_inference_steps": 5, "distilled": True},
    "refined": {"num_inference_steps": 2, "distilled": True, "refine": True},
    "balanced": {"num_inference_steps": 8, "quality": "balanced"},
}


def request_of(pipeline, *prompts, seed=3, step_cache=None, **options):
    params = GenerationParams(num_frames=5, **options)
    plan = resolve(params, Inputs(num_prompts=len(prompts)), pipeline.limits, step_cache=step_cache)
    return Request(plan=plan, prompts=prompts, seed=seed)


def undisturbed(pipeline, request):
    """The latents of each stage on a single rank, by segment and stage."""
    events = pipeline.generate(request)
    return {(e.segment, e.stage): e.latents for e in events if isinstance(e, Latents)}


def assert_undisturbed(answers, pipeline, requests):
    """Check the latents that each rank got of each job; all are there."""
    expected = {
        (job, *stage): latents
        for job, request in enumerate(requests)
        for stage, latents in undisturbed(pipeline, request).items()
    }
    found = [(tuple(key), latents) for answer in answers for *key, latents in answer]
    assert {key for key, _ in found} == set(expected)
    for key, latents in found:
        torch.testing.assert_close(latents, expected[key], rtol=0, atol=ATOL)


@pytest.mark.integration
@pytest.mark.parametrize("kind", OPTIONS)
def test_change_of_width_between_steps_changes_no_latents(
    ranks, kind, tmp_path, tiny_checkpoint, tiny_pipeline
):
    step_cache = 0.4 if kind == "balanced" else None  # some steps are reused
    request = request_of(tiny_pipeline, "a cat", step_cache=step_cache, **OPTIONS[kind])
    answers = ranks.run("run_in_blocks", 4, tiny_checkpoint, tmp_path, [request], WIDTHS)
    assert_undisturbed(answers, tiny_pipeline, [request])


@pytest.mark.integration
def test_change_of_width_at_a_segment_boundary_changes_no_latents(
    ranks, tmp_path, tiny_checkpoint, tiny_pipeline
):
    few_steps = {"num_inference_steps": 2, "enhance_hf": False}
    request = request_of(tiny_pipeline, "a cat", "a dog", num_condition_frames=1, **few_steps)
    rounds = [[Run(0, 2, 2, 2)], [Run(0, 0, 1, 1)], [Run(0, 0, 4)]]
    answers = ranks.run("run_in_blocks", 4, tiny_checkpoint, tmp_path, [request], rounds)
    assert_undisturbed(answers, tiny_pipeline, [request])


@pytest.mark.integration
def test_jobs_in_disjoint_blocks_do_not_disturb_each_other(ranks, tmp_path, tiny_checkpoint, tiny_pipeline):
    requests = [
        request_of(tiny_pipeline, "a cat", num_inference_steps=5),
        request_of(tiny_pipeline, "a dog", seed=4, num_inference_steps=4, distilled=True),
        request_of(tiny_pipeline, "a bird", seed=5, num_inference_steps=3),
    ]
    rounds = [
        [Run(0, 0, 2, 2), Run(1, 2, 1, 1), Run(2, 3, 1, 1)],
        [Run(1, 0, 2), Run(0, 2, 2, 2)],
        [Run(2, 2, 2), Run(0, 1, 1)],
    ]
    answers = ranks.run("run_in_blocks", 4, tiny_checkpoint, tmp_path, requests, rounds)
    assert_undisturbed(answers, tiny_pipeline, requests)


def test_rank_has_a_place_in_one_block_of_each_width(ranks):
    answers = ranks.run("places", 4)
    assert answers == [[(width, rank % width, rank // width) for width in (1, 2, 4)] for rank in range(4)]


def test_pipeline_is_refused_for_a_width_that_does_not_divide_the_heads(tiny_pipeline):
    with pytest.raises(GroupError, match="8 ranks cannot share 12 attention heads"):
        tiny_pipeline.on(ContextParallel(size=8))


def test_pipeline_on_other_ranks_has_the_same_weights(tiny_pipeline):
    other = ContextParallel(size=2)
    moved = tiny_pipeline.on(other)
    assert moved.dit is tiny_pipeline.dit
    assert (moved.parallel, tiny_pipeline.parallel) == (other, SINGLE)
