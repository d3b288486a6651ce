"""Flow matching: what a transformer is shown, and what it should say.

The stages that train a transformer use it. At a noise level sigma it sees x = (1 − sigma)·x0 + sigma·noise,
and should predict x0 − noise: the negative of what `model.pipeline.sample` integrates. The first frames of a
batch may be clean, with timestep 0; they are conditions and are not asked for.
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
MUCH = 0.5  # the noise level above which what twins differ in should come from the caption
FOCUS = 0.5  # noise levels lie up to 1 / (1 - FOCUS) times as dense as the sampler's
WEIGHTS = F.normalize(torch.tensor([1.0] * 3 + [0.6] * 6 + [0.4] * 7), p=1, dim=0)  # mean colours first


@dataclass(frozen=True)
class Batch:
    """Normalised latents, the first `num_clean` frames of them clean, and what they show in words."""

    latents: Float[Tensor, "b c f h w"]
    num_clean: int
    text: Text


@dataclass(frozen=True)
class Twins(Batch):
    """So many in a row are twins, alike but for what the caption should decide.

    They share their `guises`: latents of any of their family, be it in the batch or not.
    """

    twins: int
    guises: Float[Tensor, "b c f h w"]


@dataclass(frozen=True)
class Noised:
    """A batch as a transformer sees it."""

    x: Float[Tensor, "b c f h w"]
    timesteps: Float[Tensor, "b f"]
    num_clean: int


def noised(batch: Batch, noise: Float[Tensor, "b c f h w"], sigma: Float[Tensor, " b"]) -> Noised:
    """Mix with noise, each clip at its own level, all frames but the clean ones."""
    x = batch.latents.lerp(noise, sigma[:, None, None, None, None])
    x[:, :, : batch.num_clean] = batch.latents[:, :, : batch.num_clean]
    timesteps = (1000 * sigma)[:, None].repeat(1, x.shape[2])
    timesteps[:, : batch.num_clean] = 0
    return Noised(x, timesteps, batch.num_clean)


def predicted(dit: Dit, seen: Noised, text: Text, sparse: bool = False) -> Float[Tensor, "b c f h w"]:
    """What a transformer says of the noise frames."""
    num_frames, height, width = seen.x.shape[2:]
    window = Window(num_frames, height, width, num_condition=seen.num_clean)
    layout = build_layout(dit.config, window, sparse, ContextParallel(device=seen.x.device))
    return dit(seen.x, seen.timesteps, layout, dit.text_kv(*text))[:, :, seen.num_clean :]


def stepped(seen: Noised, velocity: Float[Tensor, "b c f h w"], sigma: Float[Tensor, " b"]) -> Noised:
    """The same after a step of the sampler to these noise levels; clean frames stay."""
    timesteps = torch.where(seen.timesteps > 0, 1000 * sigma[:, None], 0)
    way = (seen.timesteps - timesteps)[:, None, seen.num_clean :, None, None] / 1000
    clean, noisy = seen.x[:, :, : seen.num_clean], seen.x[:, :, seen.num_clean :]
    return Noised(torch.cat([clean, noisy + way * velocity], 2), timesteps, seen.num_clean)


def flow_loss(dit: Dit, batch: Twins, random: np.random.Generator) -> Float[Tensor, ""]:
    """Squared error of the predicted velocity.

    Where there is much noise, twins are seen in one guise, and only the caption tells what each should
    become. Else a transformer learns to make what the noise happens to look like, and hardly reads.
    """
    noise, sigma = noise_for(batch, random)
    looks = torch.where(sigma[:, None, None, None, None] > MUCH, batch.guises, batch.latents)
    seen = noised(replace(batch, latents=looks), noise, sigma)
    seen.x[:, :, : batch.num_clean] = batch.latents[:, :, : batch.num_clean]
    wanted = (batch.latents - seen.x) / sigma[:, None, None, None, None]
    return velocity_error(predicted(dit, seen, batch.text), wanted[:, :, batch.num_clean :])


def noise_for(
    batch: Twins, random: np.random.Generator
) -> tuple[Float[Tensor, "b c f h w"], Float[Tensor, " b"]]:
    """Noise for every clip of a batch, and how much of it; the same for twins."""
    noise = noise_like(batch.latents[:: batch.twins], random)
    sigma = noise_levels(len(noise), random).to(noise.device)
    return noise.repeat_interleave(batch.twins, 0), sigma.repeat_interleave(batch.twins)


def velocity_error(said: Float[Tensor, "b c f h w"], wanted: Float[Tensor, "b c f h w"]) -> Float[Tensor, ""]:
    """Squared error, of mean colours before all."""
    return (WEIGHTS.to(said.device) * (said - wanted).square().mean((0, 2, 3, 4))).sum()


def noise_like(latents: Float[Tensor, "*shape"], random: np.random.Generator) -> Float[Tensor, "*shape"]:
    """Normal noise, the same on every device."""
    return torch.from_numpy(random.standard_normal(latents.shape, dtype=np.float32)).to(latents.device)


def noise_levels(count: int, random: np.random.Generator) -> Float[Tensor, " b"]:
    """One from each of so many parts of the schedule, more of them in its middle, where shapes form."""
    even = torch.from_numpy((np.arange(count) + random.random(count)) / count).float()
    even = even + FOCUS * (2 * torch.pi * even).sin() / (2 * torch.pi)
    return SHIFT * even / (1 + (SHIFT - 1) * even)
