"""What the pocket VAE keeps of a clip: in each cell of 8×8 pixels its mean colour and how that changes.

A cell of the first frame keeps the mean, the slopes along columns and down rows, the twist, and the bends
of two mixes of colours: sixteen numbers. A cell of four later frames keeps mean and slopes of their
average, and how the mean, and the slopes of the two mixes, change in time. All of it is linear:
`latents` computes it plainly and fast, and `write_encoder` writes the same sums into the convolutions of
a Wan encoder. `training.vae` trains the decoder, which is the hard half.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

CELL, GROUP, CHANNELS = 8, 4, 16
MIXES = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.0, -0.5]])
GAINS = torch.tensor([1.0] * 3 + [3.0] * 6 + [4.0] * 7)
CONSTANT = 30.0  # beside it a norm over channels is nearly linear
LOG_VARIANCE = -7.0

MEAN = torch.tensor([[0.25, 0.25], [0.25, 0.25]])
ALONG, DOWN = MEAN * torch.tensor([-1.0, 1.0]), MEAN * torch.tensor([[-1.0], [1.0]])
TWIST = MEAN * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
AVERAGE, CHANGE = (0.0, 0.5, 0.5), (0.0, -0.5, 0.5)
Wan = Any  # diffusers' AutoencoderKLWan, which has no types

COLOURS, WIDENED = slice(0, 3), 16  # channels of the encoder; the constant's is the last of those in use


def latents(frames: Float[Tensor, "n height width 3"]) -> Float[Tensor, "c f h w"]:
    """Unnormalised latents of a clip in [0, 1] with 4k + 1 frames."""
    flat, slope, bend = torch.tensor([[1.0] * 8, [-1.0] * 4 + [1.0] * 4, [-1, -1, 1, 1, 1, 1, -1, -1]]) / CELL
    cut = (frames * 2 - 1).unflatten(2, (-1, CELL)).unflatten(1, (-1, CELL))
    columns = {
        name: torch.einsum("nhywxc,x->nhwyc", cut, x) for name, x in (("flat", flat), ("slope", slope))
    }
    bent = torch.einsum("nhywxc,x,y->nhwc", cut[:1], bend, flat)
    mean, down = (torch.einsum("nhwyc,y->nhwc", columns["flat"], y) for y in (flat, slope))
    along, twist = (torch.einsum("nhwyc,y->nhwc", columns["slope"], y) for y in (flat, slope))
    bent_down = torch.einsum("nhwyc,y->nhwc", columns["flat"][:1], bend)
    first = [mean[:1], along[:1], down[:1], twist[:1], bent @ MIXES.T, bent_down @ MIXES.T]
    averages = [_in_groups(x, (0.25,) * 4) for x in (mean, along, down)]
    mean, along, down = (_in_groups(x, (-0.25, -0.25, 0.25, 0.25)) for x in (mean, along, down))
    later = [*averages, mean, along @ MIXES.T, down @ MIXES.T]
    return (torch.cat([torch.cat(first, -1), torch.cat(later, -1)]) * GAINS).permute(3, 0, 1, 2)


def _in_groups(x: Float[Tensor, "n h w c"], weights: tuple[float, ...]) -> Float[Tensor, "f h w c"]:
    return torch.einsum("fthwc,t->fhwc", x[1:].unflatten(0, (-1, GROUP)), torch.tensor(weights))


@torch.no_grad()
def write_encoder(vae: Wan) -> None:
    """Write the same sums into the encoder: what is not needed is zero, so residual blocks do nothing."""
    for module in (*vae.encoder.modules(), vae.quant_conv):
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            silence(module)
    _, to_2px, widen, to_4px, widen_again, to_8px, spread = vae.encoder.down_blocks
    vae.encoder.conv_in.weight[COLOURS, :, -1, 1, 1] = torch.eye(3)
    vae.encoder.conv_in.bias[3] = CONSTANT
    _keep(widen.conv_shortcut, 4)
    _keep(widen_again.conv_shortcut, 8)
    _write_halving(to_2px.resample[1].weight)
    _write_slopes(to_4px.resample[1].weight)
    _write_in_time(to_4px.time_conv.weight, torch.eye(16), AVERAGE)
    _write_cells(to_8px.resample[1].weight)
    _write_changes(to_8px.time_conv.weight)
    _write_head(vae, spread.conv_shortcut.weight)


@torch.no_grad()
def silence(module: nn.Module) -> None:
    """All parameters zero."""
    for parameter in module.parameters():
        parameter.zero_()


def _keep(shortcut: nn.Conv3d, count: int) -> None:
    shortcut.weight[:count, :count, 0, 0, 0] = torch.eye(count)


def _write_halving(weight: Tensor) -> None:
    weight[:4, :4, :2, :2] = torch.eye(4)[:, :, None, None] * MEAN


def _write_slopes(weight: Tensor) -> None:
    """Beside the halves, slopes of the mixes: channels 4, 5 along and 6, 7 down."""
    _write_halving(weight)
    weight[4:6, COLOURS, :2, :2] = MIXES[..., None, None] * ALONG
    weight[6:8, COLOURS, :2, :2] = MIXES[..., None, None] * DOWN


def _write_cells(weight: Tensor) -> None:
    """The sixteen numbers of a first frame, and the constant."""
    for place, kernel in enumerate((MEAN, ALONG, DOWN, TWIST)):
        weight[3 * place : 3 * place + 3, COLOURS, :2, :2] = torch.eye(3)[:, :, None, None] * kernel
    weight[12:14, 4:6, :2, :2] = -torch.eye(2)[:, :, None, None] * ALONG
    weight[14:16, 6:8, :2, :2] = -torch.eye(2)[:, :, None, None] * DOWN
    weight[WIDENED, 3, :2, :2] = MEAN


def _write_changes(weight: Tensor) -> None:
    """Later frames: averages of means and slopes, changes of means and of the mixes' slopes."""
    kept = torch.zeros(32, 32)
    kept[:9, :9], kept[WIDENED, WIDENED] = torch.eye(9), 1
    _write_in_time(weight, kept, AVERAGE)
    changed = torch.zeros(32, 32)
    changed[9:12, 0:3], changed[12:14, 3:6], changed[14:16, 6:9] = torch.eye(3), MIXES, MIXES
    _write_in_time(weight, changed, CHANGE)


def _write_in_time(weight: Tensor, channels: Float[Tensor, "out in"], taps: tuple[float, ...]) -> None:
    weight[:, :, :, 0, 0] += channels[..., None] * torch.tensor(taps)


def _write_head(vae: Wan, spread: Tensor) -> None:
    """Use x = silu(x) − silu(−x): each number passes the activation twice, the constant not at all."""
    spread[:CHANNELS, :CHANNELS, 0, 0, 0] = torch.eye(CHANNELS)
    spread[CHANNELS : 2 * CHANNELS, :CHANNELS, 0, 0, 0] = -torch.eye(CHANNELS)
    spread[2 * CHANNELS :, WIDENED, 0, 0, 0] = 1
    gamma, constants = vae.encoder.norm_out.gamma, spread.shape[0] - 2 * CHANNELS
    gamma.fill_(CONSTANT * (constants / spread.shape[0]) ** 0.5)
    gamma[2 * CHANNELS :] = 0
    out = vae.encoder.conv_out.weight
    out[:CHANNELS, :CHANNELS, -1, 1, 1] = torch.diag(GAINS)
    out[:CHANNELS, CHANNELS : 2 * CHANNELS, -1, 1, 1] = -torch.diag(GAINS)
    vae.quant_conv.weight[:CHANNELS, :CHANNELS, 0, 0, 0] = torch.eye(CHANNELS)
    vae.quant_conv.bias[CHANNELS:] = LOG_VARIANCE
