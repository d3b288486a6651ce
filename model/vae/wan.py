"""Run the encoder and the decoder of the Wan VAE on a clip, chunk by chunk.

The modules and weights are those of diffusers. Their forward is rewritten here so that it takes any number of
latent frames at a time, shards the rows of a picture over the ranks, and copies the input of a convolution
only once. Frames are [frames, channels, rows, columns]. With `Rows.channels_last` they are stored channels
last, and the kernels are those that are fastest on CUDA. The first chunk of a clip is its first frame alone.

Most calls are nested without variables, so that each tensor is freed as soon as the next one exists.
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

PAST_FRAMES = 2  # of a causal convolution over three frames
NORM_EPS = 1e-12

Frames = Float[Tensor, "_ _ _ _"]  # frames, channels, rows, columns
Network = WanEncoder3d | WanDecoder3d
Layer = WanResidualBlock | WanAttentionBlock | WanResample


@dataclass(frozen=True)
class Stream:
    """The state of a clip in one network: this rank's rows, and the last inputs of each convolution."""

    rows: Rows
    past: dict[nn.Module, Tensor] = field(default_factory=dict)


def encode_chunk(encoder: WanEncoder3d, pixels: Frames, stream: Stream) -> Frames:
    """Return the moments of a chunk: of the first frame alone, then of every four frames."""
    x = _causal(encoder.conv_in, pixels, stream)
    for layer in cast(Sequence[Layer], encoder.down_blocks):
        x = _run_layer(layer, x, stream)
    return _output(encoder, _mid_block(encoder.mid_block, x, stream), stream)


def decode_chunk(decoder: WanDecoder3d, latents: Frames, stream: Stream) -> Frames:
    """Return the pixels of a chunk: one frame of the first latent frame, four of each later one."""
    x = _mid_block(decoder.mid_block, _causal(decoder.conv_in, latents, stream), stream)
    for block in cast(Sequence[WanUpBlock], decoder.up_blocks):
        for layer in cast(Sequence[Layer], [*block.resnets, *(block.upsamplers or ())]):
            x = _run_layer(layer, x, stream)
    return _output(decoder, x, stream)


def pointwise(
    conv: nn.Module, x: Float[Tensor, "frames channels rows columns"]
) -> Float[Tensor, "frames out rows columns"]:
    """Apply a convolution whose kernel is one place; an identity returns x."""
    if isinstance(conv, nn.Identity):
        return x
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    return F.conv2d(x, conv.weight.flatten(1)[..., None, None], conv.bias)


def _mid_block(block: WanMidBlock, x: Frames, stream: Stream) -> Frames:
    first, *others = cast(Sequence[WanResidualBlock], block.resnets)
    x = _residual(first, x, stream)
    for attention, residual in zip(cast(Sequence[WanAttentionBlock], block.attentions), others, strict=True):
        x = _residual(residual, _attention(attention, x, stream), stream)
    return x


def _run_layer(layer: Layer, x: Frames, stream: Stream) -> Frames:
    if isinstance(layer, WanResidualBlock):
        return _residual(layer, x, stream)
    if isinstance(layer, WanAttentionBlock):
        return _attention(layer, x, stream)
    return _upsample(layer, x, stream) if layer.mode.startswith("up") else _downsample(layer, x, stream)


def _output(network: Network, x: Frames, stream: Stream) -> Frames:
    return _causal(network.conv_out, _activate(network.norm_out, x, stream), stream)


def _residual(block: WanResidualBlock, x: Frames, stream: Stream) -> Frames:
    update = _causal(
        block.conv2,
        _activate(block.norm2, _causal(block.conv1, _activate(block.norm1, x, stream), stream), stream),
        stream,
    )
    return update.add_(pointwise(block.conv_shortcut, x))


def _attention(block: WanAttentionBlock, x: Frames, stream: Stream) -> Frames:
    """Attend from this rank's places to all places of the same frame, with one head."""
    tokens = pointwise(block.to_qkv, _norm(block.norm, x, stream)).flatten(2).transpose(1, 2)[:, None]
    width = tokens.shape[-1] // 3
    q, kv = torch.split(tokens, [width, 2 * width], dim=-1)
    k, v = stream.rows.gather_tokens(kv, x.shape[3]).chunk(2, dim=-1)
    out = F.scaled_dot_product_attention(q, k, v)[:, 0]
    return x + pointwise(block.proj, torch.unflatten(out.transpose(1, 2), 2, x.shape[2:]))


def _upsample(resample: WanResample, x: Frames, stream: Stream) -> Frames:
    """Double rows and columns and, in `upsample3d`, the frames except the first of the clip."""
    if resample.mode == "upsample3d":
        conv = resample.time_conv
        if conv in stream.past:
            x = _double_frames(_causal_in_time(conv, x, stream), stream)
        else:  # later frames see zeros in place of the first frame
            stream.past[conv] = torch.zeros_like(x).expand(PAST_FRAMES, -1, -1, -1)
    padded = stream.rows.pad_with_halo(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return _convolve(cast(nn.Conv2d, resample.resample[1]), padded, stream)


def _double_frames(x: Frames, stream: Stream) -> Frames:
    """Make two frames of each: the first and the second half of its channels."""
    n, channels, height, width = x.shape
    out = _empty((2 * n, channels // 2, height, width), x, stream)
    torch.unflatten(out, 0, (n, 2)).copy_(torch.unflatten(x, 1, (2, -1)))
    return out


def _downsample(resample: WanResample, x: Frames, stream: Stream) -> Frames:
    """Halve rows and columns and, in `downsample3d`, the frames except the first of the clip."""
    padded = stream.rows.pad_with_halo(x, before=False)
    x = _convolve(cast(nn.Conv2d, resample.resample[1]), padded, stream)
    if resample.mode == "downsample3d":
        conv = resample.time_conv
        if conv in stream.past:
            return _causal_in_time(conv, x, stream)
        stream.past[conv] = x
    return x


def _causal(conv: WanCausalConv3d, x: Frames, stream: Stream) -> Frames:
    """Convolve over rows, columns and frames, with zeros before the first frame of the clip."""
    past = stream.past.get(conv)
    if past is None:
        channels, height, width = x.shape[1:]
        past = x.new_zeros(PAST_FRAMES, channels, height + 2, width + 2)
    frames = stream.rows.pad_with_halo(x, past)
    del x
    stream.past[conv] = frames[-PAST_FRAMES:].clone()
    return _convolve(conv, frames, stream)


def _causal_in_time(conv: WanCausalConv3d, x: Frames, stream: Stream) -> Frames:
    """Convolve over frames alone, after the past ones."""
    past = stream.past[conv]
    frames = _empty((len(past) + len(x), *x.shape[1:]), x, stream)
    frames[: len(past)], frames[len(past) :] = past, x
    stream.past[conv] = frames[-len(past) :].clone()
    return _convolve(conv, frames, stream)


def _empty(sizes: tuple[int, ...], x: Frames, stream: Stream) -> Frames:
    """Return new frames with the dtype and device of x, in the memory format of the stream."""
    return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=stream.rows.memory_format)


def _convolve(conv: nn.Conv2d | WanCausalConv3d, frames: Frames, stream: Stream) -> Frames:
    """Apply a convolution without padding."""
    if isinstance(conv, nn.Conv2d):
        return F.conv2d(frames, conv.weight, conv.bias, conv.stride)
    return _conv3d(conv, frames) if stream.rows.channels_last else _conv2d_per_frame(conv, frames)


def _conv3d(conv: WanCausalConv3d, frames: Frames) -> Frames:
    """Convolve with one kernel. The transposes are views, since channels are last."""
    return F.conv3d(frames.transpose(0, 1)[None], conv.weight, conv.bias, conv.stride)[0].transpose(0, 1)


def _conv2d_per_frame(conv: WanCausalConv3d, frames: Frames) -> Frames:
    """Sum 2D convolutions over the frames of the kernel, which is several times as fast on a CPU."""
    kernel_frames, stride = conv.weight.shape[2], conv.stride[0]
    end = len(frames) - kernel_frames + 1
    out = F.conv2d(frames[:end:stride], conv.weight[:, :, 0], conv.bias)
    for i in range(1, kernel_frames):
        out += F.conv2d(frames[i : end + i : stride], conv.weight[:, :, i])
    return out


def _activate(norm: WanRMS_norm, x: Frames, stream: Stream) -> Frames:
    """Normalise, then apply SiLU."""
    return F.silu(_norm(norm, x, stream), inplace=True)


def _norm(norm: WanRMS_norm, x: Frames, stream: Stream) -> Frames:
    """Apply RMSNorm over the channels in fp32, times the weight. The result is always a new tensor."""
    weight = norm.gamma.flatten()
    return _fused_norm(x, weight) if stream.rows.channels_last else _norm_by_steps(x, weight)


def _fused_norm(x: Frames, weight: Float[Tensor, " channels"]) -> Frames:
    return F.rms_norm(x.movedim(1, -1), weight.shape, weight, NORM_EPS**2).movedim(-1, 1)


def _norm_by_steps(x: Frames, weight: Float[Tensor, " channels"]) -> Frames:
    """Normalise where channels are first; faster there than PyTorch's own kernel."""
    squares = x.square().sum(1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    normed: Tensor = (x * (len(weight) ** 0.5 / squares.sqrt().clamp_min(NORM_EPS))).to(x.dtype)
    return normed * weight[:, None, None]
