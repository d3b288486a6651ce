"""Making sure that an image is one, and bringing it into one shape: an upright RGB PNG.

Called by `service.inputs`. What kind of file it is says its content, never its name.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from model.spec.shapes import Size
from service.errors import UnusableInput

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MIN_SIDE = 16
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning where those are errors
_UNDECODABLE = (  # what decoders raise on bytes that make no sense to them
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


def normalise_image(source: BinaryIO, target: Path, max_pixels: int) -> Size:
    """Decode the image in `source` and write it to `target`; returns its size in pixels.

    Of an animation the first frame counts; transparent parts become white. Raises UnusableInput.
    """
    try:
        with _opened(source, max_pixels) as image:
            upright = ImageOps.exif_transpose(image)
            flat = _to_rgb(upright)
    except _UNDECODABLE as error:
        raise UnusableInput("is damaged, or not an image") from error
    flat.save(target, "PNG", compress_level=1)
    return Size(flat.height, flat.width)


def _opened(source: BinaryIO, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(source, formats=FORMATS)
    except _BOMBS as error:
        raise UnusableInput(f"has more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise UnusableInput(f"must be an image, one of {', '.join(FORMATS)}") from error
    if image.width * image.height > max_pixels:
        raise UnusableInput(f"has more than {max_pixels} pixels")
    if min(image.size) < MIN_SIDE:
        raise UnusableInput(f"must have sides of at least {MIN_SIDE} pixels")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB. Sixteen bits are scaled to eight, which `convert` alone would clip."""
    if image.mode.startswith("I;"):
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
