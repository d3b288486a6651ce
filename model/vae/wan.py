"""The Wan VAE's two networks: chunks of frames in, chunks of frames out.

`model.vae` drives them. The modules, their weights and names, are those of diffusers; the way through them
is here, because it should take any number of latent frames at a time, spread the rows of a picture over
several devices, and copy what a convolution needs just once. Frames stand as [n, c, h, w], channels last
on CUDA. The first chunk of a clip is its first frame alone. It does not know of pixels' or latents' scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanDecoder3d,
    WanEncoder3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
    WanUpBlock,
)
from jaxtyping import Float
from torch import Tensor, nn

from model.vae.rows import Rows

FRAMES_BEFORE = 2  # that a convolution over three frames sees
NORM_EPS = 1e-12

Frames = Float[Tensor, "_ _ _ _"]  # n, c, h, w
Network = WanEncoder3d | WanDecoder3d
Part = WanResidualBlock | WanAttentionBlock | WanResample


@dataclass(frozen=True)
class Stream:
    """A clip on its way through one network: the rows that are here, and what each convolution saw last."""

    rows: Rows
    seen: dict[nn.Module, Tensor] = field(default_factory=dict)


def encoded(encoder: WanEncoder3d, pixels: Frames, stream: Stream) -> Frames:
    """Moments of the latent frames that a chunk ends: the first frame alone, then one for every four."""
    x = _causal(encoder.conv_in, pixels, stream)
    for part in cast(Sequence[Part], encoder.down_blocks):
        x = _through(part, x, stream)
    return _end(encoder, _middle(encoder.mid_block, x, stream), stream)


def decoded(decoder: WanDecoder3d, latents: Frames, stream: Stream) -> Frames:
    """Pixels of a chunk: of the first latent frame one, of each later one four."""
    x = _middle(decoder.mid_block, _causal(decoder.conv_in, latents, stream), stream)
    for block in cast(Sequence[WanUpBlock], decoder.up_blocks):
        for part in cast(Sequence[Part], [*block.resnets, *(block.upsamplers or ())]):
            x = _through(part, x, stream)
    return _end(decoder, x, stream)


def pointwise(conv: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h w"]:
    """A convolution over the channels of each place alone, or none at all."""
    if isinstance(conv, nn.Identity):
        return x
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    return F.conv2d(x, conv.weight.flatten(1)[..., None, None], conv.bias)


def _middle(block: WanMidBlock, x: Frames, stream: Stream) -> Frames:
    first, *others = cast(Sequence[WanResidualBlock], block.resnets)
    x = _residual(first, x, stream)
    for attention, residual in zip(cast(Sequence[WanAttentionBlock], block.attentions), others, strict=True):
        x = _residual(residual, _attention(attention, x, stream), stream)
    return x


def _through(part: Part, x: Frames, stream: Stream) -> Frames:
    if isinstance(part, WanResidualBlock):
        return _residual(part, x, stream)
    if isinstance(part, WanAttentionBlock):
        return _attention(part, x, stream)
    return _larger(part, x, stream) if part.mode.startswith("up") else _smaller(part, x, stream)


def _end(network: Network, x: Frames, stream: Stream) -> Frames:
    return _causal(network.conv_out, F.silu(_norm(network.norm_out, x), inplace=True), stream)


def _residual(block: WanResidualBlock, x: Frames, stream: Stream) -> Frames:
    update = x
    for norm, conv in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
        update = _causal(conv, F.silu(_norm(norm, update), inplace=True), stream)
    return update.add_(pointwise(block.conv_shortcut, x))


def _attention(block: WanAttentionBlock, x: Frames, stream: Stream) -> Frames:
    """Attention of the places that are here to all places of the same frame, with one head."""
    tokens = pointwise(block.to_qkv, _norm(block.norm, x)).flatten(2).transpose(1, 2)[:, None]
    width = tokens.shape[-1] // 3
    q, own = torch.split(tokens, [width, 2 * width], dim=-1)
    k, v = stream.rows.gather_tokens(own, x.shape[3]).chunk(2, dim=-1)
    out = F.scaled_dot_product_attention(q, k, v)[:, 0]
    return x + pointwise(block.proj, torch.unflatten(out.transpose(1, 2), 2, x.shape[2:]))


def _larger(resample: WanResample, x: Frames, stream: Stream) -> Frames:
    """Twice the sides, and in time two frames for each but the first."""
    if resample.mode == "upsample3d":
        conv = resample.time_conv
        if conv in stream.seen:
            x = torch.unflatten(_in_time(conv, x, stream), 1, (2, -1)).flatten(0, 1)
        else:  # the first frame is seen by none of the later ones
            stream.seen[conv] = torch.zeros_like(x).expand(FRAMES_BEFORE, -1, -1, -1)
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return _convolved(cast(nn.Conv2d, resample.resample[1]), stream.rows.framed(x))


def _smaller(resample: WanResample, x: Frames, stream: Stream) -> Frames:
    """Half the sides, and in time one frame for every two but the first."""
    x = _convolved(cast(nn.Conv2d, resample.resample[1]), stream.rows.framed(x)[:, :, 1:, 1:])
    if resample.mode == "downsample3d":
        conv = resample.time_conv
        if conv in stream.seen:
            return _in_time(conv, x, stream)
        stream.seen[conv] = x
    return x


def _causal(conv: WanCausalConv3d, x: Frames, stream: Stream) -> Frames:
    """Convolve over rows, columns and frames, where zeros come before the first frame."""
    past = stream.seen.get(conv)
    if past is None:
        channels, height, width = x.shape[1:]
        past = x.new_zeros(FRAMES_BEFORE, channels, height + 2, width + 2)
    frames = stream.rows.framed(x, past)
    stream.seen[conv] = frames[-FRAMES_BEFORE:].clone()
    return _convolved(conv, frames)


def _in_time(conv: WanCausalConv3d, x: Frames, stream: Stream) -> Frames:
    """Convolve over frames alone, after those of the past."""
    past = stream.seen[conv]
    frames = torch.cat([past, x])
    stream.seen[conv] = frames[-len(past) :].clone()
    return _convolved(conv, frames)


def _convolved(conv: nn.Conv2d | WanCausalConv3d, frames: Frames) -> Frames:
    """The convolution at every place where its kernel fits."""
    if isinstance(conv, nn.Conv2d):
        return F.conv2d(frames, conv.weight, conv.bias, conv.stride)
    return _at_once(conv, frames) if frames.is_cuda else _tap_by_tap(conv, frames)


def _at_once(conv: WanCausalConv3d, frames: Frames) -> Frames:
    """A view there and back where channels lie last."""
    return F.conv3d(frames.transpose(0, 1)[None], conv.weight, conv.bias, conv.stride)[0].transpose(0, 1)


def _tap_by_tap(conv: WanCausalConv3d, frames: Frames) -> Frames:
    """The sum over the kernel's frames: on a CPU several times as fast as all at once."""
    taps, step = conv.weight.shape[2], conv.stride[0]
    last = len(frames) - taps + 1
    out = F.conv2d(frames[:last:step], conv.weight[:, :, 0], conv.bias)
    for tap in range(1, taps):
        out += F.conv2d(frames[tap : last + tap : step], conv.weight[:, :, tap])
    return out


def _norm(norm: WanRMS_norm, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """RMSNorm over the channels, in fp32, and times the weight; always a new tensor."""
    weight = norm.gamma.flatten()
    return _norm_in_one_kernel(x, weight) if x.is_cuda else _norm_step_by_step(x, weight)


def _norm_in_one_kernel(x: Float[Tensor, "n c h w"], weight: Float[Tensor, " c"]) -> Float[Tensor, "n c h w"]:
    return F.rms_norm(x.movedim(1, -1), weight.shape, weight, NORM_EPS**2).movedim(-1, 1)


def _norm_step_by_step(x: Float[Tensor, "n c h w"], weight: Float[Tensor, " c"]) -> Float[Tensor, "n c h w"]:
    """Where channels lie first, faster than PyTorch's own."""
    squares = x.square().sum(1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    normed: Tensor = (x * (len(weight) ** 0.5 / squares.sqrt().clamp_min(NORM_EPS))).to(x.dtype)
    return normed * weight[:, None, None]
