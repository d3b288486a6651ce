"""Stage 6: train a LoRA that refines clips to twice the size and twice the frame rate.

`python -m training.refine RUN CHECKPOINT` trains `refinement_lora` with block-sparse attention. As in
sampling, a clip is decoded and upsampled, its latents are mixed with noise at level `T_THRESH`, and the
transformer moves from there to the latents of the same scene rendered at full size. The target is the
constant velocity of that straight path. In some examples the first frames are clean, as after an image or
an earlier segment.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.io.pixels import padded, stretch_positions, stretched
from model.spec.geometry import RefineLayout, Size, frames_of_latents, latent_frames, refine_layout
from model.spec.resolve import T_THRESH
from model.transformer.dit import Dit
from model.vae.vae import Vae
from training import lora
from training.analytic_encoder import encode_clip
from training.captions import random_caption
from training.checkpoint import load_dit
from training.encoders import FrozenEncoders
from training.flow_matching import Batch, add_noise, normal_like, predict_velocity, velocity_loss
from training.latents import GROUP_SIZE, NUM_FRAMES, clip_scene
from training.scenes import HEIGHT, WIDTH, Scene, draw
from training.stage import parse_options
from training.transformer import trainable

STEPS = 1000
POOL_CLIPS = 96
# in turn; 10 frames are the 5 that segments share, at twice the frame rate
CONDITION_FRAME_COUNTS = (0, 0, 1, 10)
LATENT_NOISE_STD = 0.1  # added before decoding, because sampled latents are not perfect either


@dataclass(frozen=True)
class RefinementExample:
    """Hold the latents of an upsampled clip and of its target, and how many latent frames are clean."""

    upsampled: Float[Tensor, "c f h w"]
    rendered: Float[Tensor, "c f h w"]
    num_clean: int
    scene: Scene


def main() -> None:
    """Train, resuming where the last run stopped, and write the LoRA file."""
    options = parse_options("refine", __doc__, STEPS)
    dit = trainable(load_dit(options.checkpoint, options.device))
    encoders = FrozenEncoders.load(options.checkpoint, options.device)
    vae = Vae.load(options.checkpoint, options.device, torch.float32)
    pool = [refinement_example(vae, index) for index in range(POOL_CLIPS)]
    updates = lora.attach(dit).to(options.device)
    lora.train(options, updates, lambda random: refine_loss(dit, encoders, pool, random))
    lora.save(updates, options.checkpoint / "lora" / "refinement_lora.safetensors")


def refinement_example(vae: Vae, index: int) -> RefinementExample:
    """Render a clip of the dataset small, decode and upsample it, and render its target at full size."""
    placed, first = clip_scene((GROUP_SIZE + 1) * index)  # another group and another member each time
    num_clean = CONDITION_FRAME_COUNTS[index // GROUP_SIZE % len(CONDITION_FRAME_COUNTS)]
    timing = refine_layout(2 * NUM_FRAMES, num_clean)
    last = first + NUM_FRAMES - 1
    small = draw(placed, torch.linspace(first, last, NUM_FRAMES)).to(vae.device)
    rendered = draw(placed, torch.linspace(first, last, timing.num_frames), scale=2)
    random = torch.Generator().manual_seed(index)
    noisy = vae.encode(small, random)
    noisy = noisy + LATENT_NOISE_STD * torch.randn(noisy.shape, generator=random).to(noisy)
    decoded = torch.cat(list(vae.decode(noisy)))
    positions = stretch_positions(len(decoded), timing.num_frames)
    upsampled = stretched(decoded, Size(2 * HEIGHT, 2 * WIDTH), positions)
    return RefinementExample(
        _encode_padded(upsampled.cpu(), timing),
        _encode_padded(rendered, timing),
        timing.condition_latents,
        placed.scene,
    )


def _encode_padded(clip: Float[Tensor, "n height width 3"], timing: RefineLayout) -> Float[Tensor, "c f h w"]:
    """Encode a clip after padding it as the pipeline does; the VAE takes whole groups of frames."""
    end_padding = timing.padded_frames - timing.front_padding - timing.num_frames
    padded_clip = padded(clip, timing.front_padding, end_padding)
    return encode_clip(padded_clip[: frames_of_latents(latent_frames(timing.padded_frames))])


def refine_loss(
    dit: Dit, encoders: FrozenEncoders, pool: list[RefinementExample], random: np.random.Generator
) -> Float[Tensor, ""]:
    """Return the velocity error on the straight path from the noisy upsampled clip to the target."""
    clip = pool[random.integers(len(pool))]
    end = encoders.normalise(clip.rendered[None])
    start = (1 - T_THRESH) * encoders.normalise(clip.upsampled[None]) + T_THRESH * normal_like(end, random)
    batch = Batch(end, clip.num_clean, encoders.encode_text([random_caption(clip.scene, random)]))
    noisy = add_noise(batch, start, torch.tensor([random.random()], dtype=end.dtype, device=end.device))
    noisy = replace(noisy, timesteps=T_THRESH * noisy.timesteps)
    target = ((end - start) / T_THRESH)[:, :, clip.num_clean :]
    return velocity_loss(predict_velocity(dit, noisy, batch.text, sparse=True), target)


if __name__ == "__main__":
    main()
