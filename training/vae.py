"""Stage 1: train the VAE, in the format of Wan 2.1's VAE but very narrow.

`python -m training.vae RUN CHECKPOINT` computes the encoder (`training.analytic_encoder`) and trains the
decoder to reconstruct clips. It writes `vae/` before training, so that the stages that need only the
encoder can run at the same time, and again at the end. The mean and deviation of the latents are measured
once.
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
from training.analytic_encoder import (
    CELL,
    CHANNELS,
    GAINS,
    Wan,
    encode_clip,
    set_encoder_weights,
    zero_parameters,
)
from training.flow_matching import normal_like
from training.optimiser import learning_rate
from training.scenes import draw, place, random_scene
from training.stage import StageOptions, TrainingRun, parse_options

CONFIG = {
    "base_dim": 8,
    "z_dim": CHANNELS,
    "dim_mult": [1, 2, 4, 5],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
STEPS, LEARNING_RATE, LOG_EVERY = 7000, 4e-4, 20
# (frames, clips) per batch; later frames are harder, because latents hold less of them
BATCHES = ((1, 4), (5, 2), (9, 1), (9, 1))
CROP_CELLS = (6, 8)
POOL_CLIPS, POOL_FRAMES, LATEST_FRAME = 500, 9, 100
LATENT_NOISE = 0.05
NORMALISED_STD = torch.tensor([1.0] * 3 + [0.7] * 6 + [0.6] * 7)  # of normalised latents, per channel
CONSTANT = 3.0

Pool = tuple[Float[Tensor, "b 3 n height width"], Float[Tensor, "b c f h w"]]


def main() -> None:
    """Train, resuming where the last run stopped, and write the checkpoint's `vae/`."""
    options = parse_options("vae", __doc__, STEPS)
    folder, vae, pool = options.checkpoint / "vae", new_vae(), random_clips(POOL_CLIPS, seed=1)
    if folder.exists():  # the transformer is trained with these statistics, so keep them
        known = load_json(folder / "config.json")
        vae.register_to_config(**{name: known[name] for name in ("latents_mean", "latents_std")})
    else:
        measure_latents(vae, pool[1])
        vae.save_pretrained(folder)  # later stages need only the encoder, which is not trained
    train(options, vae.to(options.device), pool)
    vae.save_pretrained(folder)


def train(options: StageOptions, vae: Wan, pool: Pool) -> None:
    """Train the decoder to reconstruct clips from slightly noisy latents."""
    trained = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    optimiser = torch.optim.Adam(trained, lr=LEARNING_RATE, betas=(0.9, 0.99))
    run = TrainingRun(options.folder, {"vae": vae, "optimiser": optimiser})
    noise_std = (
        LATENT_NOISE * torch.tensor(vae.config.latents_std, device=options.device)[:, None, None, None]
    )
    while run.step < options.steps:
        random = np.random.default_rng((2, run.step))
        frames, z = (part.to(options.device) for part in random_crops(pool, random))
        error = F.mse_loss(decode(vae, z + noise_std * normal_like(z, random)), frames)
        optimiser.zero_grad()
        error.backward()
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * learning_rate(run.step, options.steps)
        optimiser.step()
        if run.step % LOG_EVERY == 0:
            run.log(
                psnr=-10 * math.log10(error.item() / 4)
            )  # values are in [-1, 1]: a quarter of the error is that in [0, 1]
        run.advance()
    run.save()


def decode(vae: Wan, z: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 n height width"]:
    """Decode like `AutoencoderKLWan.decode`, but without clamping to [-1, 1], so that every error counts."""
    return torch.cat(list(_decode_frames(vae, z)), dim=2)


def _decode_frames(vae: Wan, z: Tensor) -> Iterator[Tensor]:
    cache = [None] * sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
    for index, frame in enumerate(z.split(1, dim=2)):
        x = vae.post_quant_conv(frame)
        yield vae.decoder(x, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)


def random_clips(count: int, seed: int) -> Pool:
    """Render clips of random scenes in [-1, 1], beginning at random times, and encode them."""
    frames, z = [], []
    for index in range(count):
        random = np.random.default_rng((seed, index))
        placed = place(random_scene(random), random)
        clip = draw(placed, torch.arange(float(POOL_FRAMES)) + float(random.integers(LATEST_FRAME)))
        frames.append(clip.permute(3, 0, 1, 2) * 2 - 1)
        z.append(encode_clip(clip))
    return torch.stack(frames), torch.stack(z)


def random_crops(pool: Pool, random: np.random.Generator) -> Pool:
    """Return a batch of random crops, aligned with the cells, of the first frames of random clips."""
    num_frames, count = BATCHES[random.integers(len(BATCHES))]
    frames, z = pool
    chosen = random.integers(len(frames), size=count)
    (rows, columns), grid = CROP_CELLS, z.shape[3:]
    top, left = (int(random.integers(size - side + 1)) for size, side in zip(grid, CROP_CELLS, strict=True))
    frames = frames[
        chosen, :, :num_frames, CELL * top : CELL * (top + rows), CELL * left : CELL * (left + columns)
    ]
    return frames, z[chosen, :, : latent_frames(num_frames), top : top + rows, left : left + columns]


def measure_latents(vae: Wan, z: Float[Tensor, "b c f h w"]) -> None:
    """Write the mean and deviation of each latent channel into the configuration of the VAE."""
    flat = z.transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=flat.mean(1).tolist(), latents_std=(flat.std(1) / NORMALISED_STD).tolist()
    )


@torch.no_grad()
def new_vae() -> Wan:
    """Return the computed encoder with a decoder that at first interpolates the cells' mean colours.

    Colours have channels of their own up to the last layer, next to a constant. All other channels are
    initialised at random, and residual blocks with zero.
    """
    torch.manual_seed(0)
    vae: Wan = AutoencoderKLWan(**CONFIG)
    set_encoder_weights(vae)
    for module in vae.decoder.modules():
        if isinstance(module, WanResidualBlock):
            zero_parameters(module.conv2)
        if isinstance(module, WanAttentionBlock):
            zero_parameters(module.proj)
    zero_parameters(vae.post_quant_conv)
    _set_channel_mix(vae.post_quant_conv, torch.eye(CHANNELS), range(CHANNELS))
    _set_colour_path(vae)
    return vae.eval()


def _set_colour_path(vae: Wan) -> None:
    decoder, identity = vae.decoder, torch.eye(4)  # three colours and the constant
    changes = torch.zeros(3, CHANNELS)
    changes[:, 9:12] = torch.diag(1 / GAINS[9:12])
    means = torch.eye(4, CHANNELS)
    means[3] = 0
    _set_channel_mix(decoder.conv_in, torch.cat([means, changes]), range(7))
    decoder.conv_in.bias[3] = CONSTANT
    first, second, third, _ = decoder.up_blocks
    in_time = first.upsamplers[0].time_conv
    for half, sign in enumerate((-1, 1)):
        width = in_time.weight.shape[1]
        channels = torch.eye(width)
        channels[:3, 4:7] = sign * torch.eye(3)
        _set_channel_mix(in_time, channels, range(half * width, (half + 1) * width))
        _set_channel_mix(second.upsamplers[0].time_conv, torch.eye(32), range(half * 32, (half + 1) * 32))
    _set_channel_mix(second.resnets[0].conv_shortcut, identity, range(4))
    for block in (first, second):
        _set_channel_mix(block.upsamplers[0].resample[1], identity, range(4))
    signs = torch.cat([identity[:3], -identity[:3], identity[3:], identity[3:]])
    _set_channel_mix(third.upsamplers[0].resample[1], signs, range(8))
    decoder.norm_out.gamma.fill_(1.6)
    _set_channel_mix(
        decoder.conv_out, torch.cat([torch.eye(3), -torch.eye(3), torch.zeros(3, 2)], 1), range(3)
    )


def _set_channel_mix(conv: nn.Conv2d | nn.Conv3d, channels: Float[Tensor, "out in"], rows: range) -> None:
    """Make these rows of a convolution mix input channels.

    2D convolutions follow an upsampling and also blur over 3×3 pixels.
    """
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
