"""Read what image files say of their colors without an ICC profile. Runs in a confined child process."""

from __future__ import annotations

import struct
from typing import BinaryIO

from PIL import Image
from PIL.ExifTags import IFD, Base, Interop

from model.media.colors import BT709_XY, SRGB, UNSPECIFIED, Chromaticities, ColorSpace

_SIGNATURE_BYTES, _CHECKSUM_BYTES, _MAX_CONTENT_BYTES = 8, 4, 32
_RGB, _NARROW_RANGE = 0, 0  # of cICP
_UNIT = 100_000  # of gAMA and cHRM
_SRGB_EXPONENT, _EXPONENT_TOLERANCE = 2.2, 0.05  # relative, as in libpng; sRGB's curve is close to this power
_XY_TOLERANCE = 0.005
_ADOBE_RGB = ColorSpace(Chromaticities((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), exponent=563 / 256)


def stated_color_space(image: Image.Image, source: BinaryIO) -> ColorSpace | None:
    """Return the color space that the file states, None for sRGB, or if its ICC profile counts.

    Of several statements of a PNG file the first of `cICP`, `iCCP`, `sRGB` and `gAMA` with `cHRM` counts, by
    the third edition of the standard. Other files have an ICC profile, or say by EXIF that they have the
    colors of Adobe RGB (1998), as cameras do.
    """
    if image.format == "PNG":
        return _of_png(_chunks(source))
    if "icc_profile" in image.info or image.mode != "RGB":
        return None
    return _ADOBE_RGB if _is_adobe_rgb(image.getexif()) else None


def _of_png(chunks: dict[bytes, bytes]) -> ColorSpace | None:
    space = _of_cicp(chunks.get(b"cICP", b""))
    if space and space.is_known:
        return space
    if chunks.keys() & {b"iCCP", b"sRGB"}:
        return None
    return _of_gamma(chunks) or space


def _of_cicp(content: bytes) -> ColorSpace | None:
    if len(content) != 4 or content[2] != _RGB:
        return None
    return ColorSpace(content[0], content[1], is_narrow=content[3] == _NARROW_RANGE)


def _of_gamma(chunks: dict[bytes, bytes]) -> ColorSpace | None:
    """Return what the exponent and the chromaticities of a PNG file mean, None if they are sRGB's."""
    exponent, chromaticities = _SRGB_EXPONENT, BT709_XY
    gamma, xy = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    if len(gamma) == 4 and (value := int.from_bytes(gamma)):
        exponent = _UNIT / value
    if len(xy) == 32:
        numbers = [number / _UNIT for number in struct.unpack(">8I", xy)]
        white, red, green, blue = zip(numbers[::2], numbers[1::2], strict=True)
        chromaticities = Chromaticities(red, green, blue, white)
    is_srgb_curve = abs(exponent / _SRGB_EXPONENT - 1) <= _EXPONENT_TOLERANCE
    is_srgb_gamut = _largest_difference(chromaticities, BT709_XY) <= _XY_TOLERANCE
    if is_srgb_curve and is_srgb_gamut:
        return None
    return ColorSpace(
        chromaticities, SRGB if is_srgb_curve else UNSPECIFIED, None if is_srgb_curve else exponent
    )


def _largest_difference(some: Chromaticities, others: Chromaticities) -> float:
    pairs = zip((x for xy in some for x in xy), (x for xy in others for x in xy), strict=True)
    return max(abs(value - other) for value, other in pairs)


def _chunks(source: BinaryIO) -> dict[bytes, bytes]:
    """Return the beginnings of the chunks before the pixels of a PNG file, by name."""
    position = source.tell()
    source.seek(_SIGNATURE_BYTES)
    chunks: dict[bytes, bytes] = {}
    while len(header := source.read(8)) == 8 and header[4:] != b"IDAT":
        size = int.from_bytes(header[:4])
        content = source.read(min(size, _MAX_CONTENT_BYTES))
        chunks.setdefault(header[4:], content)
        source.seek(size - len(content) + _CHECKSUM_BYTES, 1)
    source.seek(position)
    return chunks


def _is_adobe_rgb(exif: Image.Exif) -> bool:
    """Return whether EXIF says that the colors are those of Adobe RGB.

    The standard's way is the interoperability index; some cameras write a 2 as the color space.
    """
    details = exif.get_ifd(IFD.Exif)
    index = exif.get_ifd(IFD.Interop).get(Interop.InteropIndex) if IFD.Interop in details else None
    return index == "R03" or details.get(Base.ColorSpace) == 2
