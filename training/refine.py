"""Sixth stage: a LoRA that refines clips to twice the size and twice the frames.

`python -m training.refine RUN CHECKPOINT` trains `refinement_lora` with block-sparse attention. The sampler
begins half way between noise and the latents of a clip that was decoded and stretched; a straight way
leads from there to the latents of the same scene drawn in full, and that is learned. Some clips are held to
clean first frames, as after an image or another segment.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.io.pixels import padded, stretched
from model.spec.geometry import RefineLayout, Size, frames_of_latents, latent_frames, refine_layout
from model.spec.shapes import T_THRESH
from model.transformer.dit import Dit
from model.vae.vae import Vae
from training import lora
from training.captions import caption
from training.cells import latents
from training.checkpoint import load_dit
from training.flow import Batch, noise_like, noised, predicted, velocity_error
from training.latents import NUM_FRAMES, TWINS, shown
from training.reader import Reader
from training.stage import stage
from training.transformer import trainable
from training.world import HEIGHT, WIDTH, Scene, draw

STEPS = 1000
POOL_CLIPS = 96
HELD_FRAMES = (0, 0, 1, 10)  # in turn; ten are the five that segments share, doubled
BLEMISHES = 0.1  # noise in the latents of what is refined, since sampled ones are not perfect either


@dataclass(frozen=True)
class Pair:
    """Latents of a clip as the sampler is given it and as it should become, and how many are held clean."""

    blurred: Float[Tensor, "c f h w"]
    sharp: Float[Tensor, "c f h w"]
    num_clean: int
    scene: Scene


def main() -> None:
    """Train, resuming where the last run stopped, and write the LoRA file."""
    told = stage("refine", __doc__, STEPS)
    dit = trainable(load_dit(told.checkpoint, told.device))
    reader = Reader.load(told.checkpoint, told.device)
    vae = Vae.load(told.checkpoint, told.device, torch.float32)
    pool = [pair(vae, index) for index in range(POOL_CLIPS)]
    changes = lora.attach(dit).to(told.device)
    lora.train(told, changes, lambda random: refine_loss(dit, reader, pool, random))
    lora.save(changes, told.checkpoint / "lora" / "refinement_lora.safetensors")


def pair(vae: Vae, index: int) -> Pair:
    """A clip of the data set, made small and drawn large."""
    placed, first = shown((TWINS + 1) * index)  # of many scenes, in all shapes
    layout = refine_layout(2 * NUM_FRAMES, HELD_FRAMES[index // TWINS % len(HELD_FRAMES)])
    last = first + NUM_FRAMES - 1
    small = draw(placed, torch.linspace(first, last, NUM_FRAMES)).to(vae.device)
    sharp = draw(placed, torch.linspace(first, last, layout.num_frames), scale=2)
    random = torch.Generator().manual_seed(index)
    seen = vae.encode(small, random)
    seen = seen + BLEMISHES * torch.randn(seen.shape, generator=random).to(seen)
    blurred = stretched(torch.cat(list(vae.decode(seen))), Size(2 * HEIGHT, 2 * WIDTH), layout.num_frames)
    return Pair(
        _latents(blurred.cpu(), layout), _latents(sharp, layout), layout.condition_latents, placed.scene
    )


def _latents(clip: Float[Tensor, "n height width 3"], layout: RefineLayout) -> Float[Tensor, "c f h w"]:
    """Of the clip as the VAE is given it, padded, of which it takes whole groups."""
    whole = padded(
        clip, layout.front_padding, layout.padded_frames - layout.front_padding - layout.num_frames
    )
    return latents(whole[: frames_of_latents(latent_frames(layout.padded_frames))])


def refine_loss(dit: Dit, reader: Reader, pool: list[Pair], random: np.random.Generator) -> Float[Tensor, ""]:
    """Error of the velocity along the straight way from a blurred, noised clip to the sharp one."""
    clip = pool[random.integers(len(pool))]
    end = reader.normalised(clip.sharp[None])
    start = (1 - T_THRESH) * reader.normalised(clip.blurred[None]) + T_THRESH * noise_like(end, random)
    batch = Batch(end, clip.num_clean, reader.read([caption(clip.scene, random)]))
    seen = noised(batch, start, torch.tensor([random.random()], dtype=end.dtype, device=end.device))
    seen = replace(seen, timesteps=T_THRESH * seen.timesteps)
    wanted = ((end - start) / T_THRESH)[:, :, clip.num_clean :]
    return velocity_error(predicted(dit, seen, batch.text, sparse=True), wanted)


if __name__ == "__main__":
    main()
