"""The loop by itself: what it steps through, keeps, and leaves alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.parallel import ALONE
from model.sample import Conditioning, denoise
from model.schedule import standard
from tests.model.parity_cases import load_dit

STEPS = 3


@pytest.fixture(scope="module")
def dit(parity_checkpoint):
    return load_dit(parity_checkpoint)


@pytest.fixture
def conditioning(dit) -> Conditioning:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    timesteps, sigmas = standard(STEPS, 12.0)
    return Conditioning(
        start=drawn(1, 16, 3, 4, 6),
        clean=drawn(1, 16, 2, 4, 6),
        text=drawn(2, 5, dit.config.caption_channels),
        mask=torch.ones(2, 5, dtype=torch.long),
        timesteps=timesteps,
        sigmas=sigmas,
        random=generator.get_state(),
        guidance_scale=4.0,
    )


def unguided(conditioning: Conditioning, **changes) -> Conditioning:
    return dataclasses.replace(
        conditioning, text=conditioning.text[1:], mask=conditioning.mask[1:], **changes
    )


def run(dit, conditioning: Conditioning) -> list[torch.Tensor]:
    return list(denoise(dit, conditioning, ALONE))


def test_there_is_a_result_for_each_step(dit, conditioning):
    steps = run(dit, conditioning)
    assert [x.shape for x in steps] == [conditioning.start.shape] * STEPS
    assert all(x.dtype == torch.float32 for x in steps)


def test_what_was_given_and_yielded_is_never_written_to(dit, conditioning):
    kept = {name: x.clone() for name, x in vars(conditioning).items() if isinstance(x, torch.Tensor)}
    loop = denoise(dit, conditioning, ALONE)
    first = next(loop)
    copy = first.clone()
    list(loop)
    assert torch.equal(first, copy)
    assert all(torch.equal(getattr(conditioning, name), x) for name, x in kept.items())


def test_a_later_first_step_goes_on_as_if_never_stopped(dit, conditioning):
    steps = run(dit, conditioning)
    resumed = run(dit, dataclasses.replace(conditioning, start=steps[0], first_step=1))
    assert len(resumed) == STEPS - 1
    assert torch.equal(resumed[-1], steps[-1])


def test_no_step_left_gives_nothing(dit, conditioning):
    assert run(dit, dataclasses.replace(conditioning, first_step=STEPS)) == []


def test_the_condition_cache_changes_nothing_without_guidance(dit, conditioning):
    plain = run(dit, unguided(conditioning))[-1]
    cached = run(dit, unguided(conditioning, cache_condition=True))[-1]
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-4)


def test_with_guidance_condition_frames_count_unless_cached(dit, conditioning):
    plain = run(dit, conditioning)[-1]
    cached = run(dit, dataclasses.replace(conditioning, cache_condition=True))[-1]
    assert not torch.allclose(cached, plain, atol=1e-3)


def test_clean_frames_are_heard(dit, conditioning):
    other = dataclasses.replace(conditioning, clean=-conditioning.clean)
    assert not torch.allclose(run(dit, other)[-1], run(dit, conditioning)[-1], atol=1e-3)


def test_no_clean_frames_need_no_cache(dit, conditioning):
    without = unguided(conditioning, clean=conditioning.clean[:, :, :0])
    cached = dataclasses.replace(without, cache_condition=True)
    assert torch.equal(run(dit, without)[-1], run(dit, cached)[-1])


def test_the_step_is_euler_with_the_predicted_velocity_turned_round(parity_checkpoint, conditioning):
    """A transformer that always predicts ones moves x by the whole fall of sigma."""
    ones = load_dit(parity_checkpoint)
    ones.final_layer.linear.weight.data = torch.zeros_like(ones.final_layer.linear.weight)
    ones.final_layer.linear.bias.data = torch.ones_like(ones.final_layer.linear.bias)
    without = unguided(conditioning, clean=conditioning.clean[:, :, :0])
    torch.testing.assert_close(run(ones, without)[-1], without.start + without.sigmas[0])
