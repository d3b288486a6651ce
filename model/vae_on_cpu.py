"""Parts of the VAE that are faster on a CPU than those of diffusers, and the same to rounding.

`model.vae` swaps them in where there is no GPU: there PyTorch's 3D convolution takes several times as long
as the 2D ones that it consists of, and its norm over channels is slow too.
"""

from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm
from jaxtyping import Float
from torch import Tensor, nn

NORM_EPS = 1e-12


class CausalConv(nn.Module):
    """In place of one `WanCausalConv3d`, with its weights and its way of being called."""

    def __init__(self, conv: WanCausalConv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._stride: tuple[int, ...] = tuple(conv.stride)
        padding = cast(tuple[int, ...], conv._padding)  # noqa: SLF001 it is kept nowhere else
        self._around, self._frames_before = padding[:4], padding[4]

    def forward(
        self,
        x: Float[Tensor, "b c n height width"],
        cache_x: Float[Tensor, "b c k height width"] | None = None,
    ) -> Float[Tensor, "b out m rows columns"]:
        """Convolve the frames after those of the cache, or after zeros."""
        missing = self._frames_before
        if cache_x is not None and missing:
            x = torch.cat([cache_x, x], dim=2)
            missing -= cache_x.shape[2]
        frames = F.pad(x, (*self._around, missing, 0)).transpose(1, 2)
        taps, step = self.weight.shape[2], self._stride[0]
        count = (frames.shape[1] - taps) // step + 1
        out = self._of_tap(frames, 0, count, self.bias)
        for tap in range(1, taps):
            out += self._of_tap(frames, tap, count, None)
        return torch.unflatten(out, 0, (-1, count)).transpose(1, 2)

    def _of_tap(
        self, frames: Float[Tensor, "b n c height width"], tap: int, count: int, bias: Tensor | None
    ) -> Float[Tensor, "bm out rows columns"]:
        """What the kernel's frame at `tap` adds to each of `count` output frames."""
        step = self._stride[0]
        seen = frames[:, tap : tap + step * (count - 1) + 1 : step].flatten(0, 1)
        return F.conv2d(seen, self.weight[:, :, tap], bias, stride=self._stride[1:])


class ChannelNorm(nn.Module):
    """In place of one `WanRMS_norm` over the channels, with its weights."""

    def __init__(self, norm: WanRMS_norm) -> None:
        super().__init__()
        self.gamma, self.bias, self._scale = norm.gamma, norm.bias, norm.scale

    def forward(self, x: Float[Tensor, "b c *rest"]) -> Float[Tensor, "b c *rest"]:
        """The norm in fp32 (or better), then back to the dtype of x, then times the weight."""
        length = x.square().sum(1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)).sqrt()
        normed: Tensor = (x / length.clamp_min(NORM_EPS)).to(x.dtype) * self._scale * self.gamma + self.bias
        return normed


def swap_parts(module: nn.Module) -> None:
    """Put these in place of every such part inside."""
    for name, child in module.named_children():
        if isinstance(child, WanCausalConv3d):
            setattr(module, name, CausalConv(child))
        elif isinstance(child, WanRMS_norm):
            setattr(module, name, ChannelNorm(child))
        else:
            swap_parts(child)
