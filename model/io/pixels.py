"""Convert frames between 8 bits and floats in [0, 1], resize them and change their number.

Frames are [frames, height, width, 3]. Only functions whose result is uint8 round to 8 bits.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from model.spec.geometry import Size

Pixels = UInt8[Tensor, "_ _ _ 3"] | Float[Tensor, "_ _ _ 3"]
"""Frames, height, width and colors: in 8 bits, or floats in [0, 1]."""


def to_uint8(frames: Float[Tensor, "frames height width 3"]) -> UInt8[Tensor, "frames height width 3"]:
    """Convert floats to 8 bits, rounding down as LongCat-Video does."""
    return (frames * 255).to(torch.uint8)


def to_floats(frames: Pixels) -> Float[Tensor, "_ _ _ 3"]:
    """Convert 8 bits on the CPU to floats. Floats are returned as they are.

    CUDA divides by multiplying with a reciprocal, which gives other floats.
    """
    return frames if frames.is_floating_point() else frames.float() / 255


def resized(
    frames: UInt8[Tensor, "frames height width 3"], size: Size
) -> UInt8[Tensor, "frames new_height new_width 3"]:
    """Resize frames with a Lanczos filter on 8 bits. The aspect ratio may change; nothing is cropped."""
    if tuple(frames.shape[1:3]) == tuple(size):
        return frames
    return torch.stack([_resized(frame, size) for frame in frames])


def _resized(frame: UInt8[Tensor, "height width 3"], size: Size) -> UInt8[Tensor, "new_height new_width 3"]:
    image = Image.fromarray(frame.numpy()).resize((size.width, size.height), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*size, 3)


def stretched(
    frames: Float[Tensor, "frames height width 3"], size: Size, positions: Float[Tensor, " new_frames"]
) -> Float[Tensor, "new_frames new_height new_width 3"]:
    """Resize frames bilinearly with aligned corners, then interpolate between them linearly.

    `positions` says where each new frame is: 1.5 is halfway between the second and the third frame. With
    those of `stretch_positions`, the result has the bits of PyTorch's trilinear interpolation of all frames.
    """
    x = frames.movedim(-1, 1)
    if tuple(x.shape[2:]) != tuple(size):
        x = F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)
    before, last = positions.floor(), len(x) - 1
    after_weights = positions - before
    weights = zip(before.int().tolist(), (1 - after_weights).tolist(), after_weights.tolist(), strict=True)
    # As in PyTorch's kernels, only the product of the later frame is rounded before the sum.
    new = [torch.add(x[min(i + 1, last)] * after, x[i], alpha=weight) for i, weight, after in weights]
    return torch.stack(new).movedim(1, -1)


def stretch_positions(num_frames: int, length: int) -> Float[Tensor, " new_frames"]:
    """Return where `length` frames are that are spread evenly from the first to the last of `num_frames`."""
    step = torch.tensor(float(num_frames - 1)) / max(length - 1, 1)  # in fp32, as PyTorch computes it
    return torch.arange(length) * step


def padded(x: Float[Tensor, "frames ..."], front: int, back: int) -> Float[Tensor, "new_frames ..."]:
    """Repeat the first entry `front` times before, and the last one `back` times after the others."""
    rest = x.shape[1:]
    return torch.cat([x[:1].expand(front, *rest), x, x[-1:].expand(back, *rest)])
