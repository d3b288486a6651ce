"""First stage: the VAE, in the layout of Wan 2.1's and very narrow.

`python -m training.vae RUN CHECKPOINT` writes the encoder (`training.cells`) and trains the decoder
to give the clip back. `vae/` is written first with the decoder as it begins, so that the later stages,
which need the encoder alone, can go on meanwhile, and again at the end. Mean and deviation of latents are
measured once: a transformer is trained with them.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanResidualBlock,
)
from jaxtyping import Float
from torch import Tensor, nn

from model.io.json_file import load_json
from model.spec.geometry import latent_frames
from training.cells import CELL, CHANNELS, GAINS, Wan, latents, silence, write_encoder
from training.flow import noise_like
from training.optimiser import learning_rate
from training.stage import Run, Stage, stage
from training.world import draw, place, random_scene

CONFIG = {
    "base_dim": 8,
    "z_dim": CHANNELS,
    "dim_mult": [1, 2, 4, 5],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
STEPS, LEARNING_RATE, LOG_EVERY = 7000, 4e-4, 20
# frames, clips; later frames are harder, being less in the latents
BATCHES = ((1, 4), (5, 2), (9, 1), (9, 1))
CROP_CELLS = (6, 8)
POOL_CLIPS, POOL_FRAMES, LATEST_FRAME = 500, 9, 100
LATENT_NOISE = 0.05
SPREAD = torch.tensor([1.0] * 3 + [0.7] * 6 + [0.6] * 7)  # of normalised latents
CONSTANT = 3.0

Pool = tuple[Float[Tensor, "b 3 n height width"], Float[Tensor, "b c f h w"]]


def main() -> None:
    """Train, resuming where the last run stopped, and write the checkpoint's `vae/`."""
    told = stage("vae", __doc__, STEPS)
    folder, vae, pool = told.checkpoint / "vae", new_vae(), clips(POOL_CLIPS, seed=1)
    if folder.exists():  # what the transformer is trained with does not change any more
        known = load_json(folder / "config.json")
        vae.register_to_config(**{name: known[name] for name in ("latents_mean", "latents_std")})
    else:
        measure_latents(vae, pool[1])
        vae.save_pretrained(folder)  # others need but its encoder, which is not trained
    train(told, vae.to(told.device), pool)
    vae.save_pretrained(folder)


def train(told: Stage, vae: Wan, pool: Pool) -> None:
    """The decoder learns to give back what the latents, slightly disturbed, were made of."""
    trained = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    optimiser = torch.optim.Adam(trained, lr=LEARNING_RATE, betas=(0.9, 0.99))
    run = Run(told.folder, {"vae": vae, "optimiser": optimiser})
    spread = LATENT_NOISE * torch.tensor(vae.config.latents_std, device=told.device)[:, None, None, None]
    while run.step < told.steps:
        random = np.random.default_rng((2, run.step))
        frames, z = (part.to(told.device) for part in crops(pool, random))
        error = F.mse_loss(decoded(vae, z + spread * noise_like(z, random)), frames)
        optimiser.zero_grad()
        error.backward()
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * learning_rate(run.step, told.steps)
        optimiser.step()
        if run.step % LOG_EVERY == 0:
            run.log(psnr=-10 * math.log10(error.item() / 4))  # of pixels in [0, 1]
        run.advance()
    run.save()


def decoded(vae: Wan, z: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 n height width"]:
    """What `AutoencoderKLWan.decode` gives, but not cut to [-1, 1], so that every error counts."""
    return torch.cat(list(_decoded(vae, z)), dim=2)


def _decoded(vae: Wan, z: Tensor) -> Iterator[Tensor]:
    cache = [None] * sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
    for index, frame in enumerate(z.split(1, dim=2)):
        x = vae.post_quant_conv(frame)
        yield vae.decoder(x, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)


def clips(count: int, seed: int) -> Pool:
    """Clips of random scenes in [-1, 1] from any time on, and their latents."""
    frames, z = [], []
    for index in range(count):
        random = np.random.default_rng((seed, index))
        placed = place(random_scene(random), random)
        clip = draw(placed, torch.arange(float(POOL_FRAMES)) + float(random.integers(LATEST_FRAME)))
        frames.append(clip.permute(3, 0, 1, 2) * 2 - 1)
        z.append(latents(clip))
    return torch.stack(frames), torch.stack(z)


def crops(pool: Pool, random: np.random.Generator) -> Pool:
    """A batch of crops, along the cells, of the beginnings of some clips."""
    num_frames, count = BATCHES[random.integers(len(BATCHES))]
    frames, z = pool
    picked = random.integers(len(frames), size=count)
    (rows, columns), room = CROP_CELLS, z.shape[3:]
    top, left = (int(random.integers(size - side + 1)) for size, side in zip(room, CROP_CELLS, strict=True))
    frames = frames[
        picked, :, :num_frames, CELL * top : CELL * (top + rows), CELL * left : CELL * (left + columns)
    ]
    return frames, z[picked, :, : latent_frames(num_frames), top : top + rows, left : left + columns]


def measure_latents(vae: Wan, z: Float[Tensor, "b c f h w"]) -> None:
    """Put mean and deviation of each latent channel into the configuration."""
    flat = z.transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=flat.mean(1).tolist(), latents_std=(flat.std(1) / SPREAD).tolist())


@torch.no_grad()
def new_vae() -> Wan:
    """The written encoder, and a decoder that begins by blending the cells' mean colours into one another.

    Colours have channels of their own up to the last layer, with a constant beside them; all other
    channels begin at random, and residual blocks with nothing.
    """
    torch.manual_seed(0)
    vae: Wan = AutoencoderKLWan(**CONFIG)
    write_encoder(vae)
    for module in vae.decoder.modules():
        if isinstance(module, WanResidualBlock):
            silence(module.conv2)
        if isinstance(module, WanAttentionBlock):
            silence(module.proj)
    silence(vae.post_quant_conv)
    _pass(vae.post_quant_conv, torch.eye(CHANNELS), range(CHANNELS))
    _pass_colours(vae)
    return vae.eval()


def _pass_colours(vae: Wan) -> None:
    decoder, keep = vae.decoder, torch.eye(4)  # three colours and the constant
    changes = torch.zeros(3, CHANNELS)
    changes[:, 9:12] = torch.diag(1 / GAINS[9:12])
    means = torch.eye(4, CHANNELS)
    means[3] = 0
    _pass(decoder.conv_in, torch.cat([means, changes]), range(7))
    decoder.conv_in.bias[3] = CONSTANT
    first, second, third, _ = decoder.up_blocks
    in_time = first.upsamplers[0].time_conv
    for half, sign in enumerate((-1, 1)):
        width = in_time.weight.shape[1]
        channels = torch.eye(width)
        channels[:3, 4:7] = sign * torch.eye(3)
        _pass(in_time, channels, range(half * width, (half + 1) * width))
        _pass(second.upsamplers[0].time_conv, torch.eye(32), range(half * 32, (half + 1) * 32))
    _pass(second.resnets[0].conv_shortcut, keep, range(4))
    for block in (first, second):
        _pass(block.upsamplers[0].resample[1], keep, range(4))
    signs = torch.cat([keep[:3], -keep[:3], keep[3:], keep[3:]])
    _pass(third.upsamplers[0].resample[1], signs, range(8))
    decoder.norm_out.gamma.fill_(1.6)
    _pass(decoder.conv_out, torch.cat([torch.eye(3), -torch.eye(3), torch.zeros(3, 2)], 1), range(3))


def _pass(conv: nn.Conv2d | nn.Conv3d, channels: Float[Tensor, "out in"], rows: range) -> None:
    """Let these rows of a convolution mix input channels, blended over 3×3 pixels where doubled."""
    weight = conv.weight[rows.start : rows.stop]
    weight.zero_()
    if conv.bias is not None:
        conv.bias[rows.start : rows.stop] = 0
    mixed = weight[:, : channels.shape[1]]
    if isinstance(conv, nn.Conv2d):
        blend = torch.tensor([0.25, 0.5, 0.25])
        mixed.copy_(channels[:, :, None, None] * torch.outer(blend, blend))
    else:
        centre = weight.shape[-1] // 2
        mixed[:, :, -1, centre, centre] = channels


if __name__ == "__main__":
    main()
