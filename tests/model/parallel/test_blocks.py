"""A job that moves between blocks of a world has the latents of one that ran undisturbed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.parallel.mesh import SINGLE, ContextParallel, divide_into_blocks
from model.pipeline.events import Latents, Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.state import State
from model.spec.errors import GroupError
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from tests.model.parity_cases import CPU

ATOL = 1e-5


@dataclasses.dataclass(frozen=True)
class Run:
    """A job runs on the block of `width` ranks from `first` on, for `steps` steps or to its end."""

    job: int
    first: int
    width: int
    steps: int | None = None


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


def in_block(world: ContextParallel, width: int) -> ContextParallel:
    """This rank's place in its block of a width."""
    return next(each for each in (world, *world.wider) if each.size == width)


def run_in_block(
    pipeline: Pipeline, folder: Path, request: Request, run: Run
) -> list[tuple[int, int, str, torch.Tensor]]:
    latents: list[tuple[int, int, str, torch.Tensor]] = []
    steps = 0
    saved = folder / f"{run.job}.safetensors"
    is_leader = pipeline.parallel.is_leader
    resume = State.load(saved) if is_leader and saved.exists() else None
    for event in pipeline.generate(request, resume):
        if isinstance(event, Latents):
            latents.append((run.job, event.segment, event.stage, event.latents))
        if isinstance(event, Stepped):
            steps += 1
            if steps == run.steps:
                if is_leader:
                    event.state.save(saved)
                break
    return latents


def run_in_blocks(
    parallel: ContextParallel,
    checkpoint: Path,
    folder: Path,
    requests: list[Request],
    rounds: list[list[Run]],
) -> list[tuple[int, int, str, torch.Tensor]]:
    """The latents of the stages that ended here: job, segment, stage, latents.

    The runs of a round are in blocks that have no rank in common. Each job resumes where it was stopped.
    """
    world = divide_into_blocks(CPU)
    whole = Pipeline.load(checkpoint, torch.float32, world)
    latents = []
    for runs in rounds:
        for run in runs:
            if run.first <= dist.get_rank() < run.first + run.width:
                latents += run_in_block(whole.on(in_block(world, run.width)), folder, requests[run.job], run)
        dist.barrier(parallel.group)  # the saved states are complete
    return latents


@pytest.mark.integration
@pytest.mark.parametrize("kind", OPTIONS)
def test_change_of_width_between_steps_changes_no_latents(
    ranks, kind, tmp_path, tiny_checkpoint, tiny_pipeline
):
    step_cache = 0.4 if kind == "balanced" else None  # some steps are reused
    request = request_of(tiny_pipeline, "a cat", step_cache=step_cache, **OPTIONS[kind])
    answers = ranks.run(run_in_blocks, 4, tiny_checkpoint, tmp_path, [request], WIDTHS)
    assert_undisturbed(answers, tiny_pipeline, [request])


@pytest.mark.integration
def test_change_of_width_at_a_segment_boundary_changes_no_latents(
    ranks, tmp_path, tiny_checkpoint, tiny_pipeline
):
    few_steps = {"num_inference_steps": 2, "enhance_hf": False}
    request = request_of(tiny_pipeline, "a cat", "a dog", num_condition_frames=1, **few_steps)
    rounds = [[Run(0, 2, 2, 2)], [Run(0, 0, 1, 1)], [Run(0, 0, 4)]]
    answers = ranks.run(run_in_blocks, 4, tiny_checkpoint, tmp_path, [request], rounds)
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
    answers = ranks.run(run_in_blocks, 4, tiny_checkpoint, tmp_path, requests, rounds)
    assert_undisturbed(answers, tiny_pipeline, requests)


def places(parallel: ContextParallel) -> list[tuple[int, int, int]]:
    """Width, rank and number of each block that this rank is in."""
    world = divide_into_blocks(CPU)
    assert world.size == 1
    own = (1, 0, dist.get_rank())
    return [own, *((block.size, block.rank, block.replica) for block in world.wider)]


def test_rank_has_a_place_in_one_block_of_each_width(ranks):
    answers = ranks.run(places, 4)
    assert answers == [[(width, rank % width, rank // width) for width in (1, 2, 4)] for rank in range(4)]


def test_pipeline_is_refused_for_a_width_that_does_not_divide_the_heads(tiny_pipeline):
    with pytest.raises(GroupError, match="8 ranks cannot share 12 attention heads"):
        tiny_pipeline.on(ContextParallel(size=8))


def test_pipeline_on_other_ranks_has_the_same_weights(tiny_pipeline):
    other = ContextParallel(size=2)
    moved = tiny_pipeline.on(other)
    assert moved.dit is tiny_pipeline.dit
    assert (moved.parallel, tiny_pipeline.parallel) == (other, SINGLE)
