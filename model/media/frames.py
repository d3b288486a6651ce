"""Convert decoded frames of clips and of HEIF images to pixels. Runs in a confined child process."""

from __future__ import annotations

from functools import partial

import av
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from PIL import Image

from model.media.colors import (
    BT709,
    MATRICES,
    UNSPECIFIED,
    ColorSpace,
    Conversion,
    full_range,
    problems_of,
    yuv_to_rgb,
)
from model.media.errors import UnusableMedia
from model.spec.geometry import Size

_FULL_RANGE = 2
_BT601 = 5
_STRIP_PIXELS = 1 << 17  # converted at a time, to bound the memory
_NO_MATRIX = frozenset({0, UNSPECIFIED, 3})  # RGB, unspecified, reserved
_MIN_HD_SIDE = 720
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""Without the last two, the colors of subsampled formats are wrong by up to three levels."""


def facts_of(frame: av.VideoFrame) -> set[str]:
    """Return the names of what `FrameReader` changes or loses. Raise UnusableMedia if it cannot read it."""
    _matrix(frame)
    facts = {"is_transparent": _has_alpha(frame), "is_interlaced": frame.interlaced_frame}
    return problems_of(_color_space(frame)) | {name for name, applies in facts.items() if applies}


class FrameReader:
    """Converts frames of one clip or image to RGB. `new_curve` encodes what was HDR."""

    def __init__(self, new_curve: int = BT709) -> None:
        self._new_curve = new_curve
        self._conversions: dict[ColorSpace, Conversion] = {}

    def read(self, frame: av.VideoFrame, max_size: Size | None = None) -> Image.Image:
        """Return the frame in RGB of BT.709, or sRGB. Transparent parts become white.

        Of an interlaced frame, return one field, which has half of the height.

        A larger frame whose colors must be converted is reduced to `max_size` before, which saves time.
        """
        space = _color_space(frame)
        if frame.interlaced_frame:
            return _first_field(self._convert(frame, space) if space.needs_conversion else _to_rgb(frame))
        if space.needs_conversion:
            return self._convert(frame, space, max_size)
        return _to_rgb(frame)

    def _convert(self, frame: av.VideoFrame, space: ColorSpace, max_size: Size | None = None) -> Image.Image:
        if space not in self._conversions:
            self._conversions[space] = Conversion(space, self._new_curve)
        if max_size and max_size.width * max_size.height < frame.width * frame.height:
            size = max_size
        else:
            size = Size(frame.height, frame.width)
        bits = frame.format.components[0].bits
        if frame.format.is_rgb:
            values = _deep_pixels(frame, "rgb48le", size)
            to_rgb = partial(full_range, bits=bits)
        else:
            values = _deep_pixels(frame, "yuv444p16le", size)
            is_full_range = frame.color_range == _FULL_RANGE
            to_rgb = partial(yuv_to_rgb, matrix=_matrix(frame), is_full_range=is_full_range, bits=bits)
        convert, rows = self._conversions[space].convert, max(1, _STRIP_PIXELS // size.width)
        strips = [convert(to_rgb(values[row : row + rows])) for row in range(0, size.height, rows)]
        image = Image.fromarray(np.concatenate(strips))
        return _on_white(image, _rgba(frame, size)) if _has_alpha(frame) else image


def _color_space(frame: av.VideoFrame) -> ColorSpace:
    return ColorSpace(frame.color_primaries, frame.color_trc)


def _has_alpha(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _first_field(image: Image.Image) -> Image.Image:
    """Return every other row. The rows between them show another moment."""
    return Image.fromarray(np.asarray(image)[::2])


def _to_rgb(frame: av.VideoFrame) -> Image.Image:
    if not _has_alpha(frame):
        return _image(_reformat(frame, "rgb24"), "RGB")
    image = _rgba(frame)
    return _on_white(image, image)


def _rgba(frame: av.VideoFrame, size: Size | None = None) -> Image.Image:
    return _image(_reformat(frame, "rgba", size), "RGBA")


def _on_white(image: Image.Image, mask: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=mask)
    return white


def _reformat(frame: av.VideoFrame, pixel_format: str, size: Size | None = None) -> av.VideoFrame:
    return frame.reformat(
        size.width if size else None,
        size.height if size else None,
        pixel_format,
        src_colorspace=_matrix(frame),
        interpolation=_SCALING,
        threads=1,  # as a confined process has
    )


def _deep_pixels(frame: av.VideoFrame, pixel_format: str, size: Size) -> NDArray[np.uint16]:
    return np.asarray(_reformat(frame, pixel_format, size).to_ndarray(), np.uint16)


def _image(frame: av.VideoFrame, mode: str) -> Image.Image:
    plane = frame.planes[0]
    return Image.frombuffer(mode, (frame.width, frame.height), bytes(plane), "raw", mode, plane.line_size, 1)


def _matrix(frame: av.VideoFrame) -> int:
    """Return the matrix of Y′CbCr as a code of H.273. If the file names none, larger frames have BT.709's."""
    if frame.colorspace in MATRICES:
        return frame.colorspace
    if frame.colorspace not in _NO_MATRIX:
        raise UnusableMedia(f"has colors that cannot be converted (matrix {frame.colorspace} of ITU-T H.273)")
    return BT709 if min(frame.width, frame.height) >= _MIN_HD_SIDE else _BT601
