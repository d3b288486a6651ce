"""Training inputs are those that the sampler produces, and contrastive groups share noise."""

from typing import Any

import numpy as np
import pytest
import torch

from model.text import Text
from training.flow_matching import (
    CHANNEL_WEIGHTS,
    SHARED_LATENTS_ABOVE,
    SHIFT,
    ContrastiveBatch,
    NoisyLatents,
    add_noise,
    euler_step,
    flow_loss,
    normal_like,
    predict_velocity,
    sample_noise_levels,
    shared_noise,
)
from training.transformer import CONFIG, new_dit


def batch_without_groups(num_clean=0, frames=3):
    generator = torch.Generator().manual_seed(0)
    text = Text(
        torch.randn(2, 5, CONFIG.caption_channels, generator=generator), torch.ones(2, 5, dtype=torch.long)
    )
    latents = torch.randn(2, 16, frames, 8, 12, generator=generator)
    return ContrastiveBatch(latents, num_clean, text, group_size=1, shared_latents=latents)


def batch_of_groups(num_clean=0):
    """Return four groups of two clips; the latents of each clip are a constant."""
    latents = torch.arange(8.0)[:, None, None, None, None].repeat(1, 16, 3, 8, 12)
    text = Text(torch.zeros(8, 5, CONFIG.caption_channels), torch.ones(8, 5, dtype=torch.long))
    shared_latents = 10 + latents[::2].repeat_interleave(2, 0)
    return ContrastiveBatch(latents, num_clean, text, group_size=2, shared_latents=shared_latents)


class RecordingDit:
    """Replace a transformer: record the inputs and predict zero."""

    config = CONFIG

    def text_kv(self, *text):
        return text

    def __call__(self, x, timesteps, layout, text):
        self.x, self.timesteps = x, timesteps
        return torch.zeros_like(x)


@pytest.fixture
def dit():
    torch.manual_seed(0)
    return new_dit()


def test_noise_level_interpolates_between_clip_and_noise():
    batch, noise = batch_without_groups(), torch.ones(2, 16, 3, 8, 12)
    noisy = add_noise(batch, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(noisy.x[0], batch.latents[0])
    assert torch.equal(noisy.x[1], noise[1])
    assert noisy.timesteps.tolist() == [[0.0] * 3, [1000.0] * 3]


def test_clean_frames_get_no_noise_and_timestep_zero():
    batch = batch_without_groups(num_clean=2)
    noisy = add_noise(batch, torch.ones_like(batch.latents), torch.tensor([0.5, 1.0]))
    assert torch.equal(noisy.x[:, :, :2], batch.latents[:, :, :2])
    assert noisy.timesteps.tolist() == [[0.0, 0.0, 500.0], [0.0, 0.0, 1000.0]]


def test_clean_frames_are_not_predicted(dit):
    batch = batch_without_groups(num_clean=1)
    noisy = add_noise(batch, torch.ones_like(batch.latents), torch.tensor([0.5, 1.0]))
    assert predict_velocity(dit, noisy, batch.text).shape == (2, 16, 2, 8, 12)


def test_new_transformer_predicts_negative_of_pure_noise(dit):
    batch = batch_without_groups()
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        velocity = predict_velocity(dit, NoisyLatents(noise, torch.full((2, 3), 1000.0), 0), batch.text)
    assert torch.nn.functional.cosine_similarity(velocity.flatten(), -noise.flatten(), dim=0) > 0.98
    assert float(velocity.std()) == pytest.approx(1, rel=0.15)


def test_euler_step_along_target_from_noise_reaches_clip():
    batch = batch_without_groups()
    noise = normal_like(batch.latents, np.random.default_rng(0))
    noisy = add_noise(batch, noise, torch.ones(2))
    assert torch.allclose(
        euler_step(noisy, batch.latents - noise, torch.zeros(2)).x, batch.latents, atol=1e-6
    )


@pytest.mark.parametrize("num_clean", [0, 2])
def test_euler_step_along_target_reaches_same_clip_with_less_noise(num_clean):
    batch, noise = batch_without_groups(num_clean), torch.ones(2, 16, 3, 8, 12)
    noisy = add_noise(batch, noise, torch.tensor([0.9, 0.5]))
    target = (batch.latents - noise)[:, :, num_clean:]
    stepped = euler_step(noisy, target, torch.tensor([0.6, 0.0]))
    expected = add_noise(batch, noise, torch.tensor([0.6, 0.0]))
    assert torch.allclose(stepped.x, expected.x, atol=1e-6)
    assert torch.equal(stepped.timesteps, expected.timesteps)
    assert stepped.num_clean == num_clean


@pytest.mark.parametrize("num_clean", [0, 1, 2])
def test_every_weight_gets_gradient(dit, num_clean):
    for parameter in dit.parameters():
        parameter.data.add_(0.01)  # weights that are zero pass no gradients on
    flow_loss(dit, batch_without_groups(num_clean), np.random.default_rng(0)).backward()
    assert [name for name, parameter in dit.named_parameters() if parameter.grad is None] == []


def test_random_generator_determines_loss(dit):
    losses = [flow_loss(dit, batch_without_groups(), np.random.default_rng(4)).item() for _ in range(2)]
    assert losses[0] == losses[1]


def test_clips_share_noise_within_groups_only():
    noise, sigma = shared_noise(batch_of_groups(), np.random.default_rng(0))
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[1], noise[2])
    assert sigma[0] == sigma[1] < sigma[2] == sigma[3]


@pytest.mark.parametrize("num_clean", [0, 1])
def test_groups_share_latents_at_high_noise_levels_only(num_clean):
    dit: Any = RecordingDit()
    batch = batch_of_groups(num_clean)
    flow_loss(dit, batch, np.random.default_rng(0))
    noise, sigma = shared_noise(batch, np.random.default_rng(0))
    assert set((sigma > SHARED_LATENTS_ABOVE).tolist()) == {True, False}
    for i, level in enumerate(sigma):
        x0 = batch.shared_latents[i] if level > SHARED_LATENTS_ABOVE else batch.latents[i]
        assert torch.allclose(dit.x[i, :, num_clean:], x0.lerp(noise[i], level)[:, num_clean:])


def test_clean_frames_are_those_of_each_clip():
    dit: Any = RecordingDit()
    batch = batch_of_groups(num_clean=1)
    flow_loss(dit, batch, np.random.default_rng(0))
    assert torch.equal(dit.x[:, :, :1], batch.latents[:, :, :1])


def test_target_leads_to_own_latents_of_each_clip():
    for seed in range(3):
        dit: Any = RecordingDit()
        batch = batch_of_groups()
        loss = flow_loss(dit, batch, np.random.default_rng(seed))
        sigma = shared_noise(batch, np.random.default_rng(seed))[1]
        target = (batch.latents - dit.x) / sigma[:, None, None, None, None]
        expected = (CHANNEL_WEIGHTS * target.square().mean((0, 2, 3, 4))).sum()
        assert loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_loss_without_groups_is_plain_flow_matching():
    dit: Any = RecordingDit()
    batch = batch_without_groups()
    loss = flow_loss(dit, batch, np.random.default_rng(0))
    noise, sigma = shared_noise(batch, np.random.default_rng(0))
    assert torch.allclose(dit.x, add_noise(batch, noise, sigma).x)
    target = (batch.latents - noise).square().mean((0, 2, 3, 4))
    assert loss.item() == pytest.approx(float((CHANNEL_WEIGHTS * target).sum()), rel=1e-4)


def test_noise_levels_are_densest_in_middle_of_schedule():
    uniform = np.linspace(0, 1, 1001)
    levels = sample_noise_levels(1000, np.random.default_rng(0)).numpy()
    schedule = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    counts = np.histogram(levels, schedule[::200])[0]
    assert counts[2] == counts.max() > 1.5 * counts[0]


def test_noise_levels_ascend_around_middle_of_shifted_schedule():
    levels = sample_noise_levels(1000, np.random.default_rng(0))
    assert bool((levels.diff() > 0).all())
    middle = SHIFT * 0.5 / (1 + (SHIFT - 1) * 0.5)
    assert float(levels.median()) == pytest.approx(middle, abs=0.01)


def test_channel_weights_sum_to_one_with_most_on_mean_colours():
    assert float(CHANNEL_WEIGHTS.sum()) == pytest.approx(1)
    assert float(CHANNEL_WEIGHTS[0]) == float(CHANNEL_WEIGHTS.max())
