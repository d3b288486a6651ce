"""Convert frames between 8 bits and floats in [0, 1], resize them and change their number.

Frames are [frames, height, width, 3]. Only functions whose result is uint8 round to 8 bits.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from model.spec.geometry import Size


def to_uint8(frames: Float[Tensor, "frames height width 3"]) -> UInt8[Tensor, "frames height width 3"]:
    """Convert floats to 8 bits, rounding down as LongCat-Video does."""
    return (frames * 255).to(torch.uint8)


def to_floats(frames: UInt8[Tensor, "frames height width 3"]) -> Float[Tensor, "frames height width 3"]:
    """Convert 8 bits to floats."""
    return frames.float() / 255


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
    frames: Float[Tensor, "frames height width 3"], size: Size, length: int
) -> Float[Tensor, "new_frames new_height new_width 3"]:
    """Resize frames bilinearly, then interpolate `length` frames trilinearly, both with aligned corners."""
    x = F.interpolate(frames.movedim(-1, 1), tuple(size), mode="bilinear", align_corners=True)
    x = F.interpolate(x.movedim(1, 0)[None], (length, *size), mode="trilinear", align_corners=True)
    return x[0].movedim(0, -1)


def padded(
    frames: Float[Tensor, "frames height width 3"], front: int, back: int
) -> Float[Tensor, "new_frames height width 3"]:
    """Repeat the first frame `front` times before, and the last one `back` times after the frames."""
    return torch.cat([frames[:1].expand(front, -1, -1, -1), frames, frames[-1:].expand(back, -1, -1, -1)])
