"""Flow matching: the inputs, targets and losses of all stages that train a transformer.

At noise level sigma the transformer receives x = (1 − sigma)·x0 + sigma·noise and predicts x0 − noise, the
negative of the velocity that the sampler integrates. The first latent frames may be clean, with timestep 0:
they are conditions, and no prediction is made for them.

Contrastive groups make the transformer follow the caption. The clips of a group show one scene and differ
only in shape, motion or colour. They share noise and noise level, and above `SHARED_LATENTS_ABOVE` they are
all noised from the latents of one clip, so that only the caption says which clip to predict.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel
from model.text import Text
from model.transformer.dit import Dit
from model.transformer.token_layout import Window, build_layout

SHIFT = 3.0
SHARED_LATENTS_ABOVE = 0.5  # noise level above which clips of a group are noised from the same latents
MIDDLE_DENSITY = 0.5  # the middle of the schedule is sampled 1 / (1 - 0.5) times as densely
# of latent channels in the loss; mean colours count most
CHANNEL_WEIGHTS = F.normalize(torch.tensor([1.0] * 3 + [0.6] * 6 + [0.4] * 7), p=1, dim=0)


@dataclass(frozen=True)
class Batch:
    """Hold normalised latents, whose first `num_clean` frames stay clean, and the text of each clip."""

    latents: Float[Tensor, "b c f h w"]
    num_clean: int
    text: Text


@dataclass(frozen=True)
class ContrastiveBatch(Batch):
    """Hold a batch in which every `group_size` consecutive clips form a contrastive group.

    All clips of a group have the same `shared_latents`: those of one clip of the group in the dataset, which
    need not be in the batch.
    """

    group_size: int
    shared_latents: Float[Tensor, "b c f h w"]


@dataclass(frozen=True)
class NoisyLatents:
    """Hold the transformer's input: latents and the timestep (0 to 1000) of each frame."""

    x: Float[Tensor, "b c f h w"]
    timesteps: Float[Tensor, "b f"]
    num_clean: int


def add_noise(batch: Batch, noise: Float[Tensor, "b c f h w"], sigma: Float[Tensor, " b"]) -> NoisyLatents:
    """Mix each clip with noise at its level sigma, except in the clean frames."""
    x = batch.latents.lerp(noise, sigma[:, None, None, None, None])
    x[:, :, : batch.num_clean] = batch.latents[:, :, : batch.num_clean]
    timesteps = (1000 * sigma)[:, None].repeat(1, x.shape[2])
    timesteps[:, : batch.num_clean] = 0
    return NoisyLatents(x, timesteps, batch.num_clean)


def predict_velocity(
    dit: Dit, noisy: NoisyLatents, text: Text, sparse: bool = False
) -> Float[Tensor, "b c f h w"]:
    """Return the transformer's prediction for the frames that are not clean."""
    num_frames, height, width = noisy.x.shape[2:]
    window = Window(num_frames, height, width, num_condition=noisy.num_clean)
    layout = build_layout(dit.config, window, ContextParallel(device=noisy.x.device), sparse=sparse)
    return dit(noisy.x, noisy.timesteps, layout, dit.text_kv(*text))[:, :, noisy.num_clean :]


def euler_step(
    noisy: NoisyLatents, velocity: Float[Tensor, "b c f h w"], sigma: Float[Tensor, " b"]
) -> NoisyLatents:
    """Advance by one Euler step of the sampler to the noise levels `sigma`; clean frames stay."""
    timesteps = torch.where(noisy.timesteps > 0, 1000 * sigma[:, None], 0)
    step = (noisy.timesteps - timesteps)[:, None, noisy.num_clean :, None, None] / 1000
    clean, others = noisy.x[:, :, : noisy.num_clean], noisy.x[:, :, noisy.num_clean :]
    return NoisyLatents(torch.cat([clean, others + step * velocity], 2), timesteps, noisy.num_clean)


def flow_loss(dit: Dit, batch: ContrastiveBatch, random: np.random.Generator) -> Float[Tensor, ""]:
    """Return the squared error of the predicted velocity.

    At high noise levels the clips of a group look alike, and only the caption distinguishes their targets.
    Otherwise the transformer learns to continue what the noise resembles and hardly uses the caption.
    """
    noise, sigma = shared_noise(batch, random)
    x0 = torch.where(
        sigma[:, None, None, None, None] > SHARED_LATENTS_ABOVE, batch.shared_latents, batch.latents
    )
    noisy = add_noise(replace(batch, latents=x0), noise, sigma)
    noisy.x[:, :, : batch.num_clean] = batch.latents[:, :, : batch.num_clean]
    target = (batch.latents - noisy.x) / sigma[:, None, None, None, None]
    return velocity_loss(predict_velocity(dit, noisy, batch.text), target[:, :, batch.num_clean :])


def shared_noise(
    batch: ContrastiveBatch, random: np.random.Generator
) -> tuple[Float[Tensor, "b c f h w"], Float[Tensor, " b"]]:
    """Return noise and noise level of each clip; both are the same within a contrastive group."""
    noise = normal_like(batch.latents[:: batch.group_size], random)
    sigma = sample_noise_levels(len(noise), random).to(noise.device)
    return noise.repeat_interleave(batch.group_size, 0), sigma.repeat_interleave(batch.group_size)


def velocity_loss(
    predicted: Float[Tensor, "b c f h w"], target: Float[Tensor, "b c f h w"]
) -> Float[Tensor, ""]:
    """Return the mean squared error, weighted by latent channel."""
    return (CHANNEL_WEIGHTS.to(predicted.device) * (predicted - target).square().mean((0, 2, 3, 4))).sum()


def normal_like(latents: Float[Tensor, "*shape"], random: np.random.Generator) -> Float[Tensor, "*shape"]:
    """Return normal noise of this shape, the same numbers on every device."""
    return torch.from_numpy(random.standard_normal(latents.shape, dtype=np.float32)).to(latents.device)


def sample_noise_levels(count: int, random: np.random.Generator) -> Float[Tensor, " b"]:
    """Return stratified noise levels of the sampler's shifted schedule, in ascending order.

    They are densest in its middle, where shapes are decided.
    """
    uniform = torch.from_numpy((np.arange(count) + random.random(count)) / count).float()
    uniform = uniform + MIDDLE_DENSITY * (2 * torch.pi * uniform).sin() / (2 * torch.pi)
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
