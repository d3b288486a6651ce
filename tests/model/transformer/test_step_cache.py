"""Steps are computed in part only where they change little, and alike after a resume."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch

from model.parallel.mesh import SINGLE, ContextParallel
from model.pipeline.events import Frames, Latents, Stepped
from model.pipeline.request import Request
from model.pipeline.sample import Conditioning, denoise
from model.pipeline.schedule import standard
from model.pipeline.state import State
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.transformer.step_cache import StepCache
from model.transformer.token_layout import Window, build_layout
from tests.model.parity_cases import load_dit

THRESHOLD = 0.4  # random weights change much from step to step


def request_of(pipeline, **options) -> Request:
    params = GenerationParams(quality="balanced", **{"num_frames": 5, "num_inference_steps": 8, **options})
    plan = resolve(params, Inputs(), pipeline.limits, step_cache=THRESHOLD)
    return Request(plan, ("a cat",), seed=5)


def exactly(request: Request) -> Request:
    return dataclasses.replace(request, plan=request.plan.model_copy(update={"step_cache": None}))


@pytest.fixture(scope="module")
def events(tiny_pipeline):
    """Of one balanced job."""
    return list(tiny_pipeline.generate(request_of(tiny_pipeline)))


def latents_of(events) -> torch.Tensor:
    (latents,) = (event.latents for event in events if isinstance(event, Latents))
    return latents


def frames_of(events) -> torch.Tensor:
    return torch.cat(
        [event.frames for event in events if isinstance(event, Frames) and event.frames is not None]
    )


def resumable(events) -> list[int]:
    """From which step a job could go on, after each step."""
    return [event.state.step for event in events if isinstance(event, Stepped)]


class Blocks:
    """Other blocks that add a number, and know how often they were run."""

    def __init__(self, added: float) -> None:
        self.added = added
        self.runs = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return x + self.added


def test_tensors_of_the_last_whole_step_are_freed_before_the_other_blocks_run_again():
    steps, alive = StepCache(0.1, SINGLE), []
    added, x = torch.ones(1, 1, 1, 4), torch.zeros(1, 1, 1, 4)
    steps.run_or_reuse(added, x, Blocks(1.0))
    last = weakref.ref(added)
    del added

    def run_others(x):
        alive.append(last() is not None)
        return x + 1

    steps.run_or_reuse(torch.full_like(x, 2), x, run_others)
    assert alive == [False]


@pytest.mark.parametrize(("change", "runs"), [(0.0, 1), (0.09, 1), (0.11, 2), (-0.11, 2), (float("nan"), 2)])
def test_later_blocks_run_if_the_update_of_the_first_changes_enough(change, runs):
    steps, blocks = StepCache(0.1, SINGLE), Blocks(7.0)
    added, x = torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    steps.run_or_reuse(added, x, blocks)
    assert not steps.reused
    out = steps.run_or_reuse(added * (1 + change), x + 1, blocks)
    assert (blocks.runs, steps.reused) == (runs, runs == 1)
    assert torch.equal(out, x + 8)


def test_small_changes_add_up_since_the_last_whole_step():
    steps, blocks = StepCache(0.1, SINGLE), Blocks(1.0)
    x = torch.zeros(1, 1, 1, 4)
    for number in range(9):
        steps.run_or_reuse(torch.full_like(x, 1 + 0.04 * number), x, blocks)
    assert blocks.runs == 3  # at 1, 1.12 and 1.24


def test_later_blocks_run_if_the_updates_of_the_first_are_zero():
    steps, blocks = StepCache(0.1, SINGLE), Blocks(1.0)
    x = torch.zeros(1, 1, 1, 4)
    for _ in range(2):
        steps.run_or_reuse(x, x, blocks)
    assert blocks.runs == 2


def test_condition_frames_and_padding_do_not_count(parity_checkpoint):
    config = load_dit(parity_checkpoint).config
    window = Window(3, 6, 10, num_condition=1)
    layout, whole = build_layout(config, window, SINGLE, sparse=False), torch.randn(1, 3, 15, 8)
    shares = [
        dataclasses.replace(layout, parallel=ContextParallel(size=4, rank=number)).noise_tokens(share)
        for number, share in enumerate(torch.nn.functional.pad(whole, (0, 0, 0, 1)).chunk(4, dim=2))
    ]
    assert torch.equal(torch.cat(shares, dim=2), whole[:, 1:])


def conditioning_of(dit, cached: bool) -> Conditioning:
    draw = torch.Generator().manual_seed(0)
    timesteps, sigmas = standard(8, 12.0)
    return Conditioning(
        start=torch.randn(1, 16, 2, 4, 6, generator=draw),
        clean=torch.randn(1, 16, 1, 4, 6, generator=draw),
        text=torch.randn(2, 5, dit.config.caption_channels, generator=draw),
        mask=torch.ones(2, 5, dtype=torch.long),
        timesteps=timesteps,
        sigmas=sigmas,
        guidance_scale=4.0,
        cache_condition=cached,
    )


@pytest.mark.parametrize("cached", [False, True])
def test_steps_that_are_all_computed_whole_are_bit_for_bit_those_without_a_cache(parity_checkpoint, cached):
    dit = load_dit(parity_checkpoint)
    conditioning = conditioning_of(dit, cached)
    steps = StepCache(1e-6, SINGLE)
    ours = list(denoise(dit, conditioning, SINGLE, steps))
    assert all(torch.equal(*pair) for pair in zip(ours, denoise(dit, conditioning, SINGLE), strict=True))


def test_later_blocks_run_once_if_every_step_is_near(parity_checkpoint):
    dit = load_dit(parity_checkpoint)
    runs = [0, 0]
    for number, block in enumerate(dit.blocks):
        block.register_forward_hook(lambda *_, number=number: runs.__setitem__(number, runs[number] + 1))
    list(denoise(dit, conditioning_of(dit, cached=False), SINGLE, StepCache(1e6, SINGLE)))
    assert runs == [8, 1]


def test_a_balanced_job_ends_near_the_exact_one(tiny_pipeline, events):
    exact = latents_of(tiny_pipeline.generate(exactly(request_of(tiny_pipeline))))
    apart = (latents_of(events) - exact).norm() / exact.norm()
    assert 0 < apart < 0.05
    assert 1 < len(set(resumable(events))) < 8  # some steps were computed whole, some in part


def test_job_can_resume_from_its_last_full_step(events):
    steps = resumable(events)
    assert steps == sorted(steps)
    assert all(resume <= done for done, resume in enumerate(steps))


def test_balanced_job_resumes_from_each_of_its_states_bit_for_bit(tiny_pipeline, events, tmp_path):
    steps = [event for event in events if isinstance(event, Stepped)]
    in_part = next(event for event in steps if event.state.step < event.step - 1)
    for event in (in_part, steps[-1]):
        event.state.save(tmp_path / "state")
        state = State.load(tmp_path / "state")
        rest = list(tiny_pipeline.generate(request_of(tiny_pipeline), state))
        assert torch.equal(latents_of(rest), latents_of(events))
        assert torch.equal(frames_of(rest), frames_of(events))
        assert resumable(rest) == resumable(events)[state.step :]


@pytest.mark.parametrize("stage", ["denoise", "refine"])
def test_refinement_is_never_computed_in_part(tiny_pipeline, stage):
    request = request_of(tiny_pipeline, refine=True)
    zeros = torch.zeros(1, 16, 4, 4, 4)
    state = dataclasses.replace(State.begin(0), stage=stage, latents=zeros, clean=zeros[:, :, :0])
    threshold = tiny_pipeline.conditioner.conditioning(request, state).step_cache
    assert threshold == (THRESHOLD if stage == "denoise" else None)
