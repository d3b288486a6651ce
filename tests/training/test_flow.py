"""What a transformer is shown in training is what the sampler will show it."""

import numpy as np
import pytest
import torch

from model.text import Text
from training.flow import (
    MUCH,
    SHIFT,
    WEIGHTS,
    Noised,
    Twins,
    flow_loss,
    noise_for,
    noise_levels,
    noise_like,
    noised,
    predicted,
    stepped,
)
from training.transformer import CONFIG, new_dit


def batch_of(num_clean=0, frames=3):
    generator = torch.Generator().manual_seed(0)
    text = Text(
        torch.randn(2, 5, CONFIG.caption_channels, generator=generator), torch.ones(2, 5, dtype=torch.long)
    )
    latents = torch.randn(2, 16, frames, 8, 12, generator=generator)
    return Twins(latents, num_clean, text, twins=1, guises=latents)


@pytest.fixture
def dit():
    torch.manual_seed(0)
    return new_dit()


def test_without_noise_the_clip_is_seen_and_at_full_noise_the_noise():
    batch, noise = batch_of(), torch.ones(2, 16, 3, 8, 12)
    seen = noised(batch, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(seen.x[0], batch.latents[0])
    assert torch.equal(seen.x[1], noise[1])
    assert seen.timesteps.tolist() == [[0.0] * 3, [1000.0] * 3]


def test_clean_frames_stay_clean_with_timestep_zero():
    batch = batch_of(num_clean=2)
    seen = noised(batch, torch.ones_like(batch.latents), torch.tensor([0.5, 1.0]))
    assert torch.equal(seen.x[:, :, :2], batch.latents[:, :, :2])
    assert seen.timesteps.tolist() == [[0.0, 0.0, 500.0], [0.0, 0.0, 1000.0]]


def test_only_noise_frames_are_asked_for(dit):
    batch = batch_of(num_clean=1)
    seen = noised(batch, torch.ones_like(batch.latents), torch.tensor([0.5, 1.0]))
    assert predicted(dit, seen, batch.text).shape == (2, 16, 2, 8, 12)


def test_a_new_transformer_takes_noise_for_noise(dit):
    batch = batch_of()
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    seen = Noised(noise, torch.full((2, 3), 1000.0), 0)
    with torch.no_grad():
        said = predicted(dit, seen, batch.text)
    assert torch.nn.functional.cosine_similarity(said.flatten(), -noise.flatten(), dim=0) > 0.98
    assert float(said.std()) == pytest.approx(1, rel=0.15)


def test_one_euler_step_along_the_truth_leads_from_noise_to_the_clip():
    batch = batch_of()
    noise = noise_like(batch.latents, np.random.default_rng(0))
    truth = batch.latents - noise
    x = noise - (0.0 - 1.0) * truth  # the sampler's step from sigma 1 to 0
    assert torch.allclose(x, batch.latents, atol=1e-6)


@pytest.mark.parametrize("num_clean", [0, 2])
def test_a_step_along_the_truth_leads_to_the_same_clip_with_less_noise(num_clean):
    batch, noise = batch_of(num_clean), torch.ones(2, 16, 3, 8, 12)
    seen = noised(batch, noise, torch.tensor([0.9, 0.5]))
    truth = (batch.latents - noise)[:, :, num_clean:]
    less = stepped(seen, truth, torch.tensor([0.6, 0.0]))
    wanted = noised(batch, noise, torch.tensor([0.6, 0.0]))
    assert torch.allclose(less.x, wanted.x, atol=1e-6)
    assert torch.equal(less.timesteps, wanted.timesteps)
    assert less.num_clean == num_clean


@pytest.mark.parametrize("num_clean", [0, 1, 2])
def test_the_loss_has_gradients_for_every_weight_that_a_clip_needs(dit, num_clean):
    batch = batch_of(num_clean)
    for parameter in dit.parameters():
        parameter.data.add_(0.01)  # silent parts pass no gradients on
    flow_loss(dit, batch, np.random.default_rng(0)).backward()
    without = [name for name, parameter in dit.named_parameters() if parameter.grad is None]
    assert without == []


def test_the_loss_is_the_same_for_the_same_random_numbers(dit):
    losses = [flow_loss(dit, batch_of(), np.random.default_rng(4)).item() for _ in range(2)]
    assert losses[0] == losses[1]


def test_twins_get_the_same_noise_and_others_do_not():
    noise, sigma = noise_for(twins_of(), np.random.default_rng(0))
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[1], noise[2])
    assert sigma[0] == sigma[1] < sigma[2] == sigma[3]


class Records:
    """In the place of a transformer: keeps what it is shown and says a constant."""

    config = CONFIG

    def text_kv(self, *text):
        return text

    def __call__(self, x, timesteps, layout, text):
        self.x, self.timesteps = x, timesteps
        return torch.zeros_like(x)


def twins_of(num_clean=0):
    """Four families of two, of which each is a constant."""
    latents = torch.arange(8.0)[:, None, None, None, None].repeat(1, 16, 3, 8, 12)
    text = Text(torch.zeros(8, 5, CONFIG.caption_channels), torch.ones(8, 5, dtype=torch.long))
    guises = 10 + latents[::2].repeat_interleave(2, 0)
    return Twins(latents, num_clean, text, twins=2, guises=guises)


@pytest.mark.parametrize("num_clean", [0, 1])
def test_twins_are_in_one_guise_where_there_is_much_noise(num_clean):
    dit, batch = Records(), twins_of(num_clean)
    flow_loss(dit, batch, np.random.default_rng(0))
    noise, sigma = noise_for(batch, np.random.default_rng(0))
    assert set((sigma > MUCH).tolist()) == {True, False}
    for i, level in enumerate(sigma):
        look = batch.guises[i] if level > MUCH else batch.latents[i]
        assert torch.allclose(dit.x[i, :, num_clean:], look.lerp(noise[i], level)[:, num_clean:])


def test_clean_frames_are_each_twins_own():
    dit, batch = Records(), twins_of(num_clean=1)
    flow_loss(dit, batch, np.random.default_rng(0))
    assert torch.equal(dit.x[:, :, :1], batch.latents[:, :, :1])


@pytest.mark.parametrize("seed", range(3))
def test_what_is_wanted_leads_to_each_twins_own_clip(seed):
    batch = twins_of()
    sigma = noise_for(batch, np.random.default_rng(seed))[1]
    dit = Records()
    loss = flow_loss(dit, batch, np.random.default_rng(seed))
    ways = (batch.latents - dit.x) / sigma[:, None, None, None, None]
    assert loss.item() == pytest.approx(float((WEIGHTS * ways.square().mean((0, 2, 3, 4))).sum()), rel=1e-5)


def test_alone_a_clip_is_seen_with_its_own_noise_and_asked_for_the_way_from_it():
    batch = batch_of()
    noise, sigma = noise_for(batch, np.random.default_rng(0))
    dit = Records()
    loss = flow_loss(dit, batch, np.random.default_rng(0))
    assert torch.allclose(dit.x, noised(batch, noise, sigma).x)
    truth = (batch.latents - noise).square().mean((0, 2, 3, 4))
    assert loss.item() == pytest.approx(float((WEIGHTS * truth).sum()), rel=1e-4)


def test_noise_levels_are_densest_in_the_middle():
    even = np.linspace(0, 1, 1001)
    levels = noise_levels(1000, np.random.default_rng(0)).numpy()
    schedule = SHIFT * even / (1 + (SHIFT - 1) * even)
    counts = np.histogram(levels, schedule[::200])[0]
    assert counts[2] == counts.max() > 1.5 * counts[0]


def test_noise_levels_spread_over_the_shifted_schedule():
    levels = noise_levels(1000, np.random.default_rng(0))
    assert bool((levels.diff() > 0).all())
    middle = SHIFT * 0.5 / (1 + (SHIFT - 1) * 0.5)
    assert float(levels.median()) == pytest.approx(middle, abs=0.01)


def test_mean_colours_count_most_and_all_weights_sum_to_one():
    assert float(WEIGHTS.sum()) == pytest.approx(1)
    assert float(WEIGHTS[0]) == float(WEIGHTS.max())
