"""The encoder of the pocket VAE, whose weights are computed and not trained.

It describes each cell of 8×8 pixels by its mean colour and how the colour varies. In the first frame a cell
has 16 values: the mean, the horizontal and vertical slopes and the mixed slope of three channels, and the
horizontal and vertical bends (second differences) of two mixes of the channels. In later frames a cell
covers four frames: the mean and slopes of their average, how the mean changes over time, and how the slopes
of the two mixes change. All of this is linear. `encode_clip` computes it directly; `set_encoder_weights`
writes the same sums into the convolutions of a Wan encoder. The decoder is trained by `training.vae`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

CELL, GROUP_FRAMES, CHANNELS = 8, 4, 16
MIXES = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.0, -0.5]])
GAINS = torch.tensor([1.0] * 3 + [3.0] * 6 + [4.0] * 7)
CONSTANT = 30.0  # so large that the norm over channels is nearly linear in the other channels
LOG_VARIANCE = -7.0

MEAN = torch.tensor([[0.25, 0.25], [0.25, 0.25]])
SLOPE_X, SLOPE_Y = MEAN * torch.tensor([-1.0, 1.0]), MEAN * torch.tensor([[-1.0], [1.0]])
TWIST = MEAN * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
MEAN_TAPS, CHANGE_TAPS = (0.0, 0.5, 0.5), (0.0, -0.5, 0.5)
Wan = Any  # diffusers' AutoencoderKLWan, which is untyped

COLOUR_CHANNELS, CONSTANT_CHANNEL = slice(0, 3), 16  # channels inside the encoder


def encode_clip(frames: Float[Tensor, "n height width 3"]) -> Float[Tensor, "c f h w"]:
    """Return the unnormalised latents of a clip in [0, 1] with one frame more than a multiple of 4."""
    flat, slope, bend = torch.tensor([[1.0] * 8, [-1.0] * 4 + [1.0] * 4, [-1, -1, 1, 1, 1, 1, -1, -1]]) / CELL
    cells = (frames * 2 - 1).unflatten(2, (-1, CELL)).unflatten(1, (-1, CELL))
    columns = {
        name: torch.einsum("nhywxc,x->nhwyc", cells, x) for name, x in (("flat", flat), ("slope", slope))
    }
    bend_x = torch.einsum("nhywxc,x,y->nhwc", cells[:1], bend, flat)
    mean, slope_y = (torch.einsum("nhwyc,y->nhwc", columns["flat"], y) for y in (flat, slope))
    slope_x, twist = (torch.einsum("nhwyc,y->nhwc", columns["slope"], y) for y in (flat, slope))
    bend_y = torch.einsum("nhwyc,y->nhwc", columns["flat"][:1], bend)
    first = [mean[:1], slope_x[:1], slope_y[:1], twist[:1], bend_x @ MIXES.T, bend_y @ MIXES.T]
    averages = [_weighted_sum_of_groups(x, (0.25,) * 4) for x in (mean, slope_x, slope_y)]
    mean, slope_x, slope_y = (
        _weighted_sum_of_groups(x, (-0.25, -0.25, 0.25, 0.25)) for x in (mean, slope_x, slope_y)
    )
    later = [*averages, mean, slope_x @ MIXES.T, slope_y @ MIXES.T]
    return (torch.cat([torch.cat(first, -1), torch.cat(later, -1)]) * GAINS).permute(3, 0, 1, 2)


def _weighted_sum_of_groups(
    x: Float[Tensor, "n h w c"], weights: tuple[float, ...]
) -> Float[Tensor, "f h w c"]:
    return torch.einsum("fthwc,t->fhwc", x[1:].unflatten(0, (-1, GROUP_FRAMES)), torch.tensor(weights))


@torch.no_grad()
def set_encoder_weights(vae: Wan) -> None:
    """Make the encoder compute `encode_clip`. Unused weights are zero, so residual blocks add nothing."""
    for module in (*vae.encoder.modules(), vae.quant_conv):
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            zero_parameters(module)
    _, to_2px, widen, to_4px, widen_again, to_8px, head_shortcut = vae.encoder.down_blocks
    vae.encoder.conv_in.weight[COLOUR_CHANNELS, :, -1, 1, 1] = torch.eye(3)
    vae.encoder.conv_in.bias[3] = CONSTANT
    _write_identity(widen.conv_shortcut, 4)
    _write_identity(widen_again.conv_shortcut, 8)
    _write_mean_pooling(to_2px.resample[1].weight)
    _write_slopes(to_4px.resample[1].weight)
    _add_temporal_taps(to_4px.time_conv.weight, torch.eye(16), MEAN_TAPS)
    _write_first_frame_features(to_8px.resample[1].weight)
    _write_later_frame_features(to_8px.time_conv.weight)
    _write_head(vae, head_shortcut.conv_shortcut.weight)


@torch.no_grad()
def zero_parameters(module: nn.Module) -> None:
    """Set all parameters to zero."""
    for parameter in module.parameters():
        parameter.zero_()


def _write_identity(shortcut: nn.Conv3d, count: int) -> None:
    shortcut.weight[:count, :count, 0, 0, 0] = torch.eye(count)


def _write_mean_pooling(weight: Tensor) -> None:
    weight[:4, :4, :2, :2] = torch.eye(4)[:, :, None, None] * MEAN


def _write_slopes(weight: Tensor) -> None:
    """Write, after the pooled channels, slopes of the two mixes: 4–5 horizontal, 6–7 vertical."""
    _write_mean_pooling(weight)
    weight[4:6, COLOUR_CHANNELS, :2, :2] = MIXES[..., None, None] * SLOPE_X
    weight[6:8, COLOUR_CHANNELS, :2, :2] = MIXES[..., None, None] * SLOPE_Y


def _write_first_frame_features(weight: Tensor) -> None:
    """Write the 16 values of a cell of the first frame, and the constant."""
    for index, kernel in enumerate((MEAN, SLOPE_X, SLOPE_Y, TWIST)):
        weight[3 * index : 3 * index + 3, COLOUR_CHANNELS, :2, :2] = torch.eye(3)[:, :, None, None] * kernel
    weight[12:14, 4:6, :2, :2] = -torch.eye(2)[:, :, None, None] * SLOPE_X
    weight[14:16, 6:8, :2, :2] = -torch.eye(2)[:, :, None, None] * SLOPE_Y
    weight[CONSTANT_CHANNEL, 3, :2, :2] = MEAN


def _write_later_frame_features(weight: Tensor) -> None:
    """Write averages of means and slopes, and changes of means and of the mixes' slopes."""
    averaged = torch.zeros(32, 32)
    averaged[:9, :9], averaged[CONSTANT_CHANNEL, CONSTANT_CHANNEL] = torch.eye(9), 1
    _add_temporal_taps(weight, averaged, MEAN_TAPS)
    changed = torch.zeros(32, 32)
    changed[9:12, 0:3], changed[12:14, 3:6], changed[14:16, 6:9] = torch.eye(3), MIXES, MIXES
    _add_temporal_taps(weight, changed, CHANGE_TAPS)


def _add_temporal_taps(weight: Tensor, channels: Float[Tensor, "out in"], taps: tuple[float, ...]) -> None:
    weight[:, :, :, 0, 0] += channels[..., None] * torch.tensor(taps)


def _write_head(vae: Wan, head_shortcut: Tensor) -> None:
    """Write the last layers so that the activation has no effect, using x = silu(x) − silu(−x).

    Each value passes the activation with both signs; the constant is dropped.
    """
    head_shortcut[:CHANNELS, :CHANNELS, 0, 0, 0] = torch.eye(CHANNELS)
    head_shortcut[CHANNELS : 2 * CHANNELS, :CHANNELS, 0, 0, 0] = -torch.eye(CHANNELS)
    head_shortcut[2 * CHANNELS :, CONSTANT_CHANNEL, 0, 0, 0] = 1
    gamma, constants = vae.encoder.norm_out.gamma, head_shortcut.shape[0] - 2 * CHANNELS
    gamma.fill_(CONSTANT * (constants / head_shortcut.shape[0]) ** 0.5)
    gamma[2 * CHANNELS :] = 0
    out = vae.encoder.conv_out.weight
    out[:CHANNELS, :CHANNELS, -1, 1, 1] = torch.diag(GAINS)
    out[:CHANNELS, CHANNELS : 2 * CHANNELS, -1, 1, 1] = -torch.diag(GAINS)
    vae.quant_conv.weight[:CHANNELS, :CHANNELS, 0, 0, 0] = torch.eye(CHANNELS)
    vae.quant_conv.bias[CHANNELS:] = LOG_VARIANCE
