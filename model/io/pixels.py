"""Frames as numbers: 8-bit or float, resized, lengthened.

`model.conditioning` prepares what the VAE encodes with it, `model.pipeline` what leaves it. Frames are
[n, height, width, 3]; floats lie in [0, 1]. Nothing is rounded to 8 bits here unless that is asked for.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from model.spec.geometry import Size


def to_bytes(frames: Float[Tensor, "n height width 3"]) -> UInt8[Tensor, "n height width 3"]:
    """As `cut`, on the CPU."""
    return cut(frames).cpu()


def cut(frames: Float[Tensor, "n height width 3"]) -> UInt8[Tensor, "n height width 3"]:
    """255 levels, cut and not rounded, as LongCat-Video writes its frames."""
    return (frames * 255).to(torch.uint8)


def to_floats(frames: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n height width 3"]:
    """The way back of `to_bytes`."""
    return frames.float() / 255


def resized(frames: UInt8[Tensor, "n height width 3"], size: Size) -> UInt8[Tensor, "n rows columns 3"]:
    """A user's frames at this size: stretched, not cropped, by Lanczos on 8 bits."""
    if tuple(frames.shape[1:3]) == tuple(size):
        return frames
    return torch.stack([_resized(frame, size) for frame in frames])


def _resized(frame: UInt8[Tensor, "height width 3"], size: Size) -> UInt8[Tensor, "rows columns 3"]:
    image = Image.fromarray(frame.numpy()).resize((size.width, size.height), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*size, 3)


def stretched(
    frames: Float[Tensor, "n height width 3"], size: Size, length: int
) -> Float[Tensor, "m rows columns 3"]:
    """Bilinear to this size, then trilinear to this many frames, both with aligned corners."""
    x = F.interpolate(frames.movedim(-1, 1), tuple(size), mode="bilinear", align_corners=True)
    x = F.interpolate(x.movedim(1, 0)[None], (length, *size), mode="trilinear", align_corners=True)
    return x[0].movedim(0, -1)


def padded(
    frames: Float[Tensor, "n height width 3"], front: int, back: int
) -> Float[Tensor, "m height width 3"]:
    """Copies of the first frame in front, of the last at the back."""
    return torch.cat([frames[:1].expand(front, -1, -1, -1), frames, frames[-1:].expand(back, -1, -1, -1)])
