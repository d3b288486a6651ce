"""Decode images to upright sRGB of at most `MAX_KEPT_PIXELS`. Runs in a confined child process."""

from __future__ import annotations

import io
import itertools
import math
import struct
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageChops, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from model.media.colors import SRGB, ColorSpace, Conversion, problems_of
from model.media.errors import UnusableMedia
from model.media.formats import IMAGE_FORMATS, MAX_KEPT_PIXELS
from model.media.heif import HEAD_BYTES, HeifImage, is_avif, is_avif_sequence, is_heic
from model.media.image_colors import stated_color_space
from model.media.protocol import Output
from model.spec.geometry import Size

_ANIMATED = {"PNG", "WEBP", "AVIF", "GIF"}  # other formats have several images for other purposes
_HEIF_ERRORS = (UnusableMedia, LookupError, struct.error)  # of files that are damaged, or of an unknown kind
_DEEP_RGB, _DEEP_RGB_SWAPPED = "RGB;16B", "RGB;16L"  # Pillow's names of the order of bytes
_STRIP_PIXELS = 1 << 17
_GAIN_MAP_NAMES = (
    b"http://ns.adobe.com/hdr-gain-map/1.0/",  # also of Android
    b"urn:iso:std:iso:ts:21496:-1",
    b"urn:com:apple:photo:2020:aux:hdrgainmap",
)
_MIN_LOSS = 12  # of 255 levels: colors that a conversion changes by less are not reported as clipped
_SAMPLE_SIDE = 256


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


def _output(image: Image.Image, content: bytes, facts: set[str]) -> Output:
    sizes = {"height": image.height, "width": image.width}
    return Output({**sizes, **dict.fromkeys(facts, True)}, len(content), [content])


def _decode(source: BinaryIO, min_side: int, max_pixels: int) -> tuple[Image.Image, set[str]]:
    """Decode the first frame. Return also the names of what is changed or lost.

    Each step releases the image before it, since memory may suffice for two.
    """
    heif = _heif(source)
    facts: set[str] = set()
    space = low_bytes = None
    if heif:
        _check_size(heif.size, min_side, max_pixels)
    if decoded := _decoded(heif) if heif else None:
        image, facts = decoded
    else:
        image = _open(source)
        _check_size(Size(image.height, image.width), min_side, max_pixels)
        if image.format in _ANIMATED and getattr(image, "is_animated", False):
            facts.add("is_animated")
        space = stated_color_space(image, source)
        needs_conversion = space.needs_conversion if space else "icc_profile" in image.info
        if needs_conversion or "transparency" in image.info:
            low_bytes = _low_bytes(image, source)
        ImageOps.exif_transpose(image, in_place=True)
        is_deep = low_bytes is not None or image.mode.startswith("I;16")
        if is_deep and "transparency" in image.info and _whiten_transparent(image, low_bytes):
            facts.add("is_transparent")
    if heif.has_gain_map if heif else _has_gain_map(image, source):
        facts.add("has_gain_map")
    if image.has_transparency_data and _has_transparent_parts(image):
        facts.add("is_transparent")
    if space:
        facts |= problems_of(space)
        if space.needs_conversion:
            image = _converted(image, space, low_bytes)
    else:
        image, problems = _to_srgb(image, low_bytes)
        facts |= problems
    image = _to_rgb(image)
    return _reduce(image), facts


def _heif(source: BinaryIO) -> HeifImage | None:
    """Return what the file says about its image, if it is a HEIC, or an AVIF whose boxes can be read.

    Pillow reads animated AVIFs, unless their colors must be converted.
    """
    head = source.read(HEAD_BYTES)
    source.seek(0)
    if is_heic(head):
        return HeifImage(source, is_heic=True)
    if not is_avif(head):
        return None
    try:
        heif = HeifImage(source, is_heic=False)
        return None if is_avif_sequence(head) and not heif.coding.space.needs_conversion else heif
    except _HEIF_ERRORS:  # Pillow may know better
        return None


def _decoded(heif: HeifImage) -> tuple[Image.Image, set[str]] | None:
    """Decode the image. Return None for an AVIF in sRGB that Pillow may be able to decode.

    Pillow comes second because its conversion of Y′CbCr is fast, with errors of several levels.
    """
    try:
        return heif.decode()
    except MemoryError:
        raise
    except (*_HEIF_ERRORS, av.error.FFmpegError):
        if heif.is_heic or heif.coding.space.needs_conversion:
            raise
        return None


def _open(source: BinaryIO) -> Image.Image:
    try:
        return Image.open(source, formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        formats = ", ".join((*IMAGE_FORMATS, "HEIC"))
        raise UnusableMedia(f"must be an image, one of {formats}") from error


def _has_gain_map(image: Image.Image, source: BinaryIO) -> bool:
    """Return whether another image in the JPEG file tells how to brighten this one for HDR."""
    if "mp" not in image.info:  # the list of further images
        return False
    position = source.tell()
    source.seek(0)
    content = source.read()
    source.seek(position)
    return any(name in content for name in _GAIN_MAP_NAMES)


def _check_size(size: Size, min_side: int, max_pixels: int) -> None:
    if size.height * size.width > max_pixels:
        raise UnusableMedia(f"has more than {max_pixels} pixels")
    if min(size) < min_side:
        raise UnusableMedia(f"must have sides of at least {min_side} pixels")


def _has_transparent_parts(image: Image.Image) -> bool:
    alpha = image.getchannel("A") if "A" in image.getbands() else image.convert("RGBA").getchannel("A")
    return alpha.getextrema()[0] != 255


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits to 8, which `convert` alone would clip."""
    if not image.mode.startswith("I;"):
        return image
    scaled = image.convert("I").point(lambda value: value / 257).convert("L")
    scaled.info = image.info
    return scaled


def _low_bytes(image: Image.Image, source: BinaryIO) -> Image.Image | None:
    """Return the lower bytes of RGB values of 16 bits, of which Pillow reads the higher ones, upright.

    Return None for values of 8 bits, and for RGBA, of whose 16 bits 8 are used.
    """
    assert isinstance(image, ImageFile.ImageFile)
    if [tile.args for tile in image.tile] != [_DEEP_RGB]:
        return None
    image.load()  # both read the same file
    low = _open(source)
    assert isinstance(low, ImageFile.ImageFile)
    low.tile = [tile._replace(args=_DEEP_RGB_SWAPPED) for tile in low.tile]
    ImageOps.exif_transpose(low, in_place=True)
    return low


def _whiten_transparent(image: Image.Image, low_bytes: Image.Image | None) -> bool:
    """Make the transparent color of an image of 16 bits white. Return whether there was any.

    Pillow compares 8 bits with it. White stays white in every conversion.
    """
    transparent = image.info.pop("transparency")
    found = False
    for box in _strips(image):
        is_transparent = (_deep(image, low_bytes, box) == transparent).all(axis=2)
        if not is_transparent.any():
            continue
        found = True
        for part in filter(None, (image, low_bytes)):
            values = np.array(part.crop(box))
            values[is_transparent] = np.iinfo(values.dtype).max
            part.paste(Image.fromarray(values), box)
    return found


def _converted(image: Image.Image, space: ColorSpace, low_bytes: Image.Image | None) -> Image.Image:
    """Convert an image of this color space to sRGB, and put it on white."""
    conversion = Conversion(space, new_curve=SRGB)
    has_alpha = image.has_transparency_data
    if not has_alpha and not image.mode.startswith("I;16"):
        image = _to_rgb(image)
    target = image if image.mode in {"RGB", "RGBA"} else Image.new("RGB", image.size)
    for box in _strips(image):
        part, alpha = image.crop(box), None
        if has_alpha:
            part = part.convert("RGBA")
            alpha = part.getchannel("A")
            target.paste("white", box)
        low = low_bytes.crop(box) if low_bytes else None
        target.paste(Image.fromarray(conversion.convert(_deep(part, low))), box, alpha)
    target.info.pop("transparency", None)
    return target


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield the boxes of strips of the image, which are small enough to bound the memory."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _deep(
    image: Image.Image, low_bytes: Image.Image | None, box: tuple[int, int, int, int] | None = None
) -> NDArray[np.uint16]:
    """Return an image, or a part of it, as RGB of 16 bits, without alpha."""
    values = np.asarray(image.crop(box)).astype(np.uint16)
    if values.ndim == 2:
        return np.repeat(values[:, :, np.newaxis], 3, axis=2)
    values = values[..., :3]
    low = np.asarray(low_bytes.crop(box)) if low_bytes else values
    return values * 256 + low


def _to_srgb(image: Image.Image, low_bytes: Image.Image | None) -> tuple[Image.Image, set[str]]:
    """Convert the colors by the image's ICC profile. Return also the names of what is lost."""
    profile = image.info.pop("icc_profile", None)
    image = _to_8_bits(image)
    if not profile:
        return image, {"has_no_profile"} if image.mode == "CMYK" else set()
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
    elif image.mode not in {"L", "RGB", "CMYK"}:
        image = image.convert("RGB")
    output_mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = _transform(given, srgb, image.mode, output_mode)
    except (ImageCms.PyCMSError, OSError):  # damaged, or of another color space than the image
        return _rounded(image, low_bytes) if low_bytes else image, {"has_unreadable_profile"}
    losses = {"is_wide_gamut"} if _is_clipped(image, given, transform) else set()
    if low_bytes:
        return _deep_to_srgb(image, low_bytes, transform), losses
    if image.mode == output_mode:
        return transform.apply_in_place(image), losses
    return transform.apply(image), losses


def _rounded(image: Image.Image, low_bytes: Image.Image) -> Image.Image:
    """Round RGB of 16 bits to 8. The higher bytes alone would be darker by half a level."""
    for box in _strips(image):
        image.paste(Image.fromarray(((_deep(image, low_bytes, box) + 128.0) / 257).astype(np.uint8)), box)
    return image


def _deep_to_srgb(
    image: Image.Image, low_bytes: Image.Image, transform: ImageCms.ImageCmsTransform
) -> Image.Image:
    """Convert RGB of 16 bits with a transform of 8 bits: interpolate between the eight colors around each.

    Colors rounded to 8 bits would end up to seven levels apart where a profile has saturated colors.
    """
    for box in _strips(image):
        whole, rest = np.divmod(_deep(image, low_bytes, box), 257)
        upper = rest.astype(np.float32) / 257
        converted = np.zeros(whole.shape, np.float32)
        for corner in itertools.product((0, 1), repeat=3):
            share = np.where(corner, upper, 1 - upper).prod(axis=2, keepdims=True)
            color = np.minimum(whole + np.array(corner, np.uint16), 255).astype(np.uint8)
            converted += share * np.asarray(transform.apply(Image.fromarray(color)))
        image.paste(Image.fromarray((converted + 0.5).astype(np.uint8)), box)
    return image


def _is_clipped(
    image: Image.Image, profile: ImageCms.ImageCmsProfile, to_srgb: ImageCms.ImageCmsTransform
) -> bool:
    """Return whether sRGB lacks colors of the image: converted and converted back, some pixels differ."""
    if image.mode != to_srgb.output_mode:  # what CMYK loses does not show in this way
        return False
    try:
        back = _transform(to_srgb.output_profile, profile, image.mode, image.mode)
    except ImageCms.PyCMSError:  # a profile that cannot be inverted
        return False
    size = min(image.width, _SAMPLE_SIDE), min(image.height, _SAMPLE_SIDE)
    sample = image.resize(size, Image.Resampling.NEAREST)
    difference = ImageChops.difference(sample, back.apply(to_srgb.apply(sample)))
    return int(np.asarray(difference).max()) > _MIN_LOSS


def _transform(
    source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile, source_mode: str, target_mode: str
) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        source,
        target,
        source_mode,
        target_mode,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


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
