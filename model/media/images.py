"""Decode images to upright RGB of at most `MAX_KEPT_PIXELS`. Runs in a confined child process."""

from __future__ import annotations

import io
import math
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from model.media.errors import UnusableMedia
from model.media.formats import IMAGE_FORMATS, MAX_KEPT_PIXELS
from model.media.protocol import Output


def warm_up() -> None:
    """Make Pillow import its modules for all formats: a confined process cannot."""
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # each request has its own limit
    for kind in IMAGE_FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, kind)
        encode_png(file, 1, 256)


def encode_png(source: BinaryIO, min_side: int, max_pixels: int) -> Output:
    """Return the image as a PNG file."""
    image = _decode(source, min_side, max_pixels)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return _output(image, file.getvalue())


def read_pixels(source: BinaryIO, min_side: int, max_pixels: int) -> Output:
    """Return the image as RGB bytes, row by row."""
    image = _decode(source, min_side, max_pixels)
    return _output(image, image.tobytes())


def _output(image: Image.Image, content: bytes) -> Output:
    return Output({"height": image.height, "width": image.width}, len(content), [content])


def _decode(source: BinaryIO, min_side: int, max_pixels: int) -> Image.Image:
    """Decode the first frame. Each step releases the image before it, since memory may suffice for two."""
    try:
        image = Image.open(source, formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        raise UnusableMedia(f"must be an image, one of {', '.join(IMAGE_FORMATS)}") from error
    if image.width * image.height > max_pixels:
        raise UnusableMedia(f"has more than {max_pixels} pixels")
    if min(image.size) < min_side:
        raise UnusableMedia(f"must have sides of at least {min_side} pixels")
    ImageOps.exif_transpose(image, in_place=True)
    return _reduce(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, on white. Scale 16 bits to 8, which `convert` alone would clip."""
    if image.mode.startswith("I;"):
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA") if image.mode != "RGBA" else image
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _reduce(image: Image.Image) -> Image.Image:
    pixels = image.width * image.height
    if pixels <= MAX_KEPT_PIXELS:
        return image
    scale = math.sqrt(MAX_KEPT_PIXELS / pixels)
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)
