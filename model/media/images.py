"""Decode images to upright sRGB of at most `MAX_KEPT_PIXELS`. Runs in a confined child process."""

from __future__ import annotations

import io
import math
from typing import BinaryIO

from PIL import AvifImagePlugin, Image, ImageCms, ImageOps, UnidentifiedImageError

from model.media.errors import UnusableMedia
from model.media.formats import IMAGE_FORMATS, MAX_KEPT_PIXELS
from model.media.protocol import Output

_ANIMATED = {"PNG", "WEBP", "AVIF", "GIF"}  # other formats have several images for other purposes
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def warm_up() -> None:
    """Make Pillow import its modules for all formats: a confined process cannot."""
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # each request has its own limit
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a confined process cannot start threads
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in IMAGE_FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, kind, icc_profile=profile)
        encode_png(file, 1, 256)


def encode_png(source: BinaryIO, min_side: int, max_pixels: int) -> Output:
    """Return the image as a PNG file, and what of the source it does not show."""
    image, facts = _decode(source, min_side, max_pixels)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, icc_profile=None)
    return _output(image, file.getvalue(), facts)


def read_pixels(source: BinaryIO, min_side: int, max_pixels: int) -> Output:
    """Return the image as RGB bytes, row by row."""
    image, facts = _decode(source, min_side, max_pixels)
    return _output(image, image.tobytes(), facts)


def _output(image: Image.Image, content: bytes, facts: dict[str, bool]) -> Output:
    return Output({"height": image.height, "width": image.width, **facts}, len(content), [content])


def _decode(source: BinaryIO, min_side: int, max_pixels: int) -> tuple[Image.Image, dict[str, bool]]:
    """Decode the first frame. Each step releases the image before it, since memory may suffice for two."""
    try:
        image: Image.Image = Image.open(source, formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        raise UnusableMedia(_refusal(source)) from error
    if image.width * image.height > max_pixels:
        raise UnusableMedia(f"has more than {max_pixels} pixels")
    if min(image.size) < min_side:
        raise UnusableMedia(f"must have sides of at least {min_side} pixels")
    is_animated = image.format in _ANIMATED and bool(getattr(image, "is_animated", False))
    ImageOps.exif_transpose(image, in_place=True)
    image, has_unreadable_profile = _to_srgb(_to_8_bits(image))
    image = _reduce(_to_rgb(image))
    return image, {"is_animated": is_animated, "has_unreadable_profile": has_unreadable_profile}


def _refusal(source: BinaryIO) -> str:
    """Return why a file of an unknown format is refused."""
    source.seek(0)
    head = source.read(12)
    if head[4:8] == b"ftyp" and head[8:] in _HEIC_BRANDS:
        return "is a HEIC image, which cannot be read; send it as JPEG, PNG or AVIF"
    return f"must be an image, one of {', '.join(IMAGE_FORMATS)}"


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits to 8, which `convert` alone would clip."""
    if not image.mode.startswith("I;"):
        return image
    scaled = image.convert("I").point(lambda value: value / 257).convert("L")
    scaled.info = image.info
    return scaled


def _to_srgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """Convert the colors by the image's ICC profile. Return also whether there is one that cannot be used."""
    profile = image.info.pop("icc_profile", None)
    if not profile:
        return image, False
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
    elif image.mode not in {"L", "RGB", "CMYK"}:
        image = image.convert("RGB")
    output_mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            image.mode,
            output_mode,
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):  # damaged, or of another color space than the image
        return image, True
    if image.mode == output_mode:
        return transform.apply_in_place(image), False
    return transform.apply(image), False


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, on white."""
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
