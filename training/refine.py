"""Sixth stage: a LoRA that refines clips to twice the size and twice the frames.

`python -m training.refine RUN CHECKPOINT` trains `refinement_lora` with block-sparse attention. The sampler
begins half way between noise and the latents of a clip that was decoded and stretched; a straight way
leads from there to the latents of the same scene drawn in full, and that is learned.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.dit import Dit
from model.geometry import Size, refine_frames
from model.pixels import padded, stretched
from model.shapes import T_THRESH
from model.vae import Vae
from training import lora
from training.captions import caption
from training.cells import latents
from training.checkpoint import load_dit
from training.flow import Noised, noise_like, predicted
from training.reader import Reader
from training.stage import stage
from training.transformer import trainable
from training.world import HEIGHT, WIDTH, Scene, draw, place, random_scene

STEPS = 600
NUM_FRAMES, POOL_CLIPS, SEED = 17, 64, 13

Ends = tuple[Float[Tensor, "c f h w"], Float[Tensor, "c f h w"], Scene]


def main() -> None:
    """Train, resuming where the last run stopped, and write the LoRA file."""
    told = stage("refine", __doc__, STEPS)
    dit = trainable(load_dit(told.checkpoint, told.device))
    reader = Reader.load(told.checkpoint, told.device)
    vae = Vae.load(told.checkpoint, told.device, torch.float32)
    pool = [ends(vae, index) for index in range(POOL_CLIPS)]
    changes = lora.attach(dit).to(told.device)
    lora.train(told, changes, lambda random: refine_loss(dit, reader, pool, random))
    lora.save(changes, told.checkpoint / "lora" / "refinement_lora.safetensors")


def ends(vae: Vae, index: int) -> Ends:
    """Latents of a clip as the sampler is given it, and as it should become."""
    random = np.random.default_rng((SEED, index))
    placed = place(random_scene(random), random)
    lie = refine_frames(2 * NUM_FRAMES, 0)
    small = draw(placed, torch.arange(float(NUM_FRAMES)))
    decoded = torch.cat(list(vae.decode(vae.encode(small, torch.Generator().manual_seed(index))))).cpu()
    blurred = stretched(decoded, Size(2 * HEIGHT, 2 * WIDTH), lie.num_frames)
    sharp = draw(placed, torch.linspace(0, NUM_FRAMES - 1, lie.num_frames), scale=2)
    back, count = lie.padded_frames - lie.num_frames, 1 + 4 * (lie.noise_latents - 1)
    return latents(padded(blurred, 0, back)[:count]), latents(padded(sharp, 0, back)[:count]), placed.scene


def refine_loss(dit: Dit, reader: Reader, pool: list[Ends], random: np.random.Generator) -> Float[Tensor, ""]:
    """Squared error of the velocity along the straight way from a blurred, noised clip to the sharp one."""
    blurred, sharp, scene = pool[random.integers(len(pool))]
    end = reader.normalised(sharp[None])
    start = (1 - T_THRESH) * reader.normalised(blurred[None]) + T_THRESH * noise_like(end, random)
    part = float(random.random())
    timesteps = torch.full((1, end.shape[2]), 1000 * T_THRESH * part, device=end.device)
    seen = Noised(end.lerp(start, part), timesteps, num_clean=0)
    velocity = predicted(dit, seen, reader.read([caption(scene, random)]), sparse=True)
    return (velocity - (end - start) / T_THRESH).square().mean()


if __name__ == "__main__":
    main()
