"""Count and read the frames of clips, or make an image of one. Runs in a confined child process.

Frames are upright, and about `fps` of them a second are taken. They are converted one by one, so that memory
does not grow with their number.
"""

from __future__ import annotations

import importlib
import io
import math
import pkgutil
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from PIL import Image

from model.media.errors import UnusableMedia
from model.media.formats import CODECS, MAX_FRAME_PIXELS, MEDIA_TYPES
from model.media.frames import FrameReader, facts_of
from model.media.heif import HEAD_BYTES, is_avif, is_heic
from model.media.protocol import Output
from model.spec.geometry import Clip, Size, every_nth, frames_at_rate

_TRANSPOSITIONS = {  # by (a, b, c, d) of the display matrix, which shows (x, y) at (ax + cy, bx + dy)
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
_UPRIGHT = (1, 0, 0, 1)
_MAX_JITTER = 0.5  # of the time between frames; more is a varying frame rate
_MAX_PIXEL_ASPECT = 4


def warm_up() -> None:
    """Make PyAV import all of its modules: a confined process cannot."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def count_frames(source: BinaryIO, max_frames: int, max_pixels: int, fps: int | None) -> Output:
    """Return the size of the clip, the number of frames to take, its media type, and what is not taken."""
    with _open(source) as container:
        scan = _scan(container, max_frames, max_pixels, fps)
        facts = {
            "media_type": MEDIA_TYPES[container.format.name],
            "nth": scan.nth,
            "speed": scan.speed,
            "has_sound": bool(container.streams.audio),
            "has_wide_pixels": _pixel_aspect(container) != 1,
            "has_unread_alpha": container.streams.video[0].metadata.get("alpha_mode")
            == "1",  # of VP8 and VP9
        }
    clip = Clip(*scan.size, len(scan.taken))
    return Output({**clip._asdict(), **facts, **dict.fromkeys(scan.facts, True)})


def read_frames(
    source: BinaryIO, max_frames: int, max_pixels: int, fps: int | None, take: tuple[int, int, int] | None
) -> Output:
    """Return the last frames as RGB bytes. `take`: their height and width, and their number."""
    with _open(source) as container:
        scan = _scan(container, max_frames, max_pixels, fps)
    clip = Clip(*take) if take else Clip(*scan.size, len(scan.taken))
    if len(scan.taken) < clip.num_frames:
        raise UnusableMedia(f"has {len(scan.taken)} frames, not {clip.num_frames}")
    size_bytes = clip.num_frames * clip.height * clip.width * 3
    images = _images(source, scan.taken[-clip.num_frames :], Size(clip.height, clip.width))
    return Output(clip._asdict(), size_bytes, (image.tobytes() for image in images))


def encode_frame(source: BinaryIO, max_frames: int, max_pixels: int, index: int) -> Output:
    """Return a frame as a PNG file. A negative index counts from the end."""
    with _open(source) as container:
        scan = _scan(container, max_frames, max_pixels, fps=None)
    num_frames = len(scan.taken)
    _check(-num_frames <= index < num_frames, f"has {num_frames} frames, and none at {index}")
    image = next(_images(source, [scan.taken[index]], scan.size))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    content = file.getvalue()
    return Output(scan.size._asdict(), len(content), [content])


def _images(source: BinaryIO, wanted: Sequence[int], size: Size) -> Iterator[Image.Image]:
    """Yield the frames with these indices, which ascend and may repeat."""
    source.seek(0)
    reader = FrameReader()
    times_wanted = Counter(wanted)
    with _open(source) as container:
        for index, frame in enumerate(_decode(container)):
            if count := times_wanted[index]:
                yield from repeat(_image(reader, frame, size), count)


def _image(reader: FrameReader, frame: av.VideoFrame, size: Size) -> Image.Image:
    """Return the upright pixels of a frame, resized to this size by Lanczos on 8 bits."""
    orientation = _orientation(frame)
    image = reader.read(frame, Size(size.width, size.height) if _is_turned(orientation) else size)
    if orientation != _UPRIGHT:
        image = image.transpose(_TRANSPOSITIONS[orientation])
    return image.resize((size.width, size.height), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class _Scan:
    size: Size
    taken: Sequence[int]  # indices of the frames to take; they may repeat
    nth: int  # every nth frame is taken, counted from the last; 1 if the times of frames decide
    speed: float  # at which the taken frames show motion, if `fps` of them are shown a second
    facts: set[str]  # names of what is changed or lost


def _scan(container: InputContainer, max_frames: int, max_pixels: int, fps: int | None) -> _Scan:
    """Decode the whole clip, and check its limits."""
    sizes: set[Size] = set()
    pixel_aspect = _pixel_aspect(container)
    times_s: list[float] = []
    num_pixels = 0
    facts: set[str] = set()
    for frame in _decode(container):
        facts |= facts_of(frame)
        sizes.add(_upright_size(frame, pixel_aspect))
        times_s.append(max(frame.time or 0.0, times_s[-1] if times_s else -math.inf))
        num_pixels += frame.height * frame.width
        _check(len(times_s) <= max_frames, f"has more than {max_frames} frames")
        _check(num_pixels <= max_pixels, f"has more than {max_pixels} pixels in all")
    _check(bool(times_s), "has no frames")
    _check(len(sizes) == 1, "changes its size on the way")
    size = sizes.pop()
    num_frames, duration_s = len(times_s), times_s[-1] - times_s[0]
    if not fps or not duration_s:
        return _Scan(size, range(num_frames), 1, 1.0, facts)
    if not _has_uneven_frames(times_s):
        nth = every_nth(num_frames, duration_s, fps)
        speed = fps * nth * duration_s / (num_frames - 1)
        return _Scan(size, range(num_frames)[::-nth][::-1], nth, speed, facts)
    _check(duration_s * fps < max_frames, f"lasts longer than {max_frames} frames at {fps} a second")
    taken = frames_at_rate(times_s, fps)
    _check(len(taken) * math.prod(size) <= max_pixels, f"has more than {max_pixels} pixels in all")
    return _Scan(size, taken, 1, 1.0, facts | {"has_uneven_frames"})


def _has_uneven_frames(times_s: list[float]) -> bool:
    """Return whether some frames are shown much longer than others."""
    durations = sorted(after - before for before, after in pairwise(times_s))
    return bool(durations) and durations[-1] - durations[0] > _MAX_JITTER * durations[len(durations) // 2]


@contextmanager
def _open(source: BinaryIO) -> Iterator[InputContainer]:
    head = source.read(HEAD_BYTES)
    source.seek(0)
    # FFmpeg would read one image, with wrong colors.
    _check(not is_heic(head) and not is_avif(head), "is an image, not a clip")
    options = {
        "format_whitelist": ",".join(MEDIA_TYPES),
        "codec_whitelist": CODECS,
        "protocol_whitelist": "none",
    }
    try:
        container = av.open(source, "r", options=options)
    except MemoryError:  # an error of FFmpeg that does not mean that the file is damaged
        raise
    except av.error.FFmpegError as error:
        raise UnusableMedia("is damaged, or not an MP4, MOV, WebM or Matroska clip") from error
    with container:
        yield container


def _decode(container: InputContainer) -> Iterator[av.VideoFrame]:
    _check(bool(container.streams.video), "has no video stream")
    stream = container.streams.video[0]
    _check(stream.width * stream.height <= MAX_FRAME_PIXELS, "has frames larger than 4096 × 2304")
    stream.codec_context.thread_count = 1  # as a confined process has
    # Frames may be larger than the header of the file says.
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS), "codec_whitelist": CODECS}
    yield from container.decode(stream)


def _pixel_aspect(container: InputContainer) -> float:
    """Return width / height of a pixel."""
    _check(bool(container.streams.video), "has no video stream")
    aspect = float(container.streams.video[0].sample_aspect_ratio or 1)
    _check(1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT, "has pixels of an extreme shape")
    return aspect


def _upright_size(frame: av.VideoFrame, pixel_aspect: float) -> Size:
    """Return the size as shown: upright, with square pixels as small as the shorter side of the given ones.

    Telephones store frames as the sensor is mounted.
    """
    height = round(frame.height / min(pixel_aspect, 1))
    width = round(frame.width * max(pixel_aspect, 1))
    _check(height * width <= MAX_FRAME_PIXELS, "has frames larger than 4096 × 2304")
    return Size(width, height) if _is_turned(_orientation(frame)) else Size(height, width)


def _is_turned(orientation: tuple[int, int, int, int]) -> bool:
    """Return whether rows are shown as columns."""
    return orientation[0] == 0


def _orientation(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of the display matrix, each -1, 0 or 1."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return _UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    largest = max(map(abs, (a, b, c, d))) or 1
    orientation = (round(a / largest), round(b / largest), round(c / largest), round(d / largest))
    is_exact = max(abs(x / largest - y) for x, y in zip((a, b, c, d), orientation, strict=True)) < 0.01
    is_known = orientation == _UPRIGHT or orientation in _TRANSPOSITIONS
    _check(is_exact and is_known, f"is to be shown turned by {frame.rotation}°")
    return orientation


def _check(fine: bool, problem: str) -> None:
    if not fine:
        raise UnusableMedia(problem)
