"""Count and read the frames of clips. Runs in a confined child process.

Frames are upright, and about `fps` of them a second are taken. They are converted one by one, so that memory
does not grow with their number.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import av
from av.container import InputContainer
from PIL import Image

from model.media.errors import UnusableMedia
from model.media.formats import CODECS, MAX_FRAME_PIXELS, MEDIA_TYPES
from model.media.protocol import Output
from model.spec.geometry import Clip, Size, every_nth, frames_taken

_COUNTERCLOCKWISE = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}


def warm_up() -> None:
    """Make PyAV import all of its modules: a confined process cannot."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def count_frames(source: BinaryIO, max_frames: int, max_pixels: int, fps: int | None) -> Output:
    """Return the size of the clip, the number of frames to take, and its media type."""
    with _open(source) as container:
        scan = _scan(container, max_frames, max_pixels, fps)
        media_type = MEDIA_TYPES[container.format.name]
    clip = Clip(*scan.size, frames_taken(scan.num_frames, scan.nth))
    return Output({**clip._asdict(), "media_type": media_type})


def read_frames(
    source: BinaryIO, max_frames: int, max_pixels: int, fps: int | None, take: tuple[int, int, int] | None
) -> Output:
    """Return the last frames as RGB bytes. `take`: their height and width, and their number."""
    with _open(source) as container:
        scan = _scan(container, max_frames, max_pixels, fps)
    num_taken = frames_taken(scan.num_frames, scan.nth)
    clip = Clip(*take) if take else Clip(*scan.size, num_taken)
    if num_taken < clip.num_frames:
        raise UnusableMedia(f"has {num_taken} frames, not {clip.num_frames}")
    first = scan.num_frames - 1 - scan.nth * (clip.num_frames - 1)
    wanted = range(first, scan.num_frames, scan.nth)
    size_bytes = clip.num_frames * clip.height * clip.width * 3
    return Output(clip._asdict(), size_bytes, _pixels(source, wanted, Size(clip.height, clip.width)))


def _pixels(source: BinaryIO, wanted: range, size: Size) -> Iterator[bytes]:
    source.seek(0)
    with _open(source) as container:
        for index, frame in enumerate(_decode(container)):
            if index in wanted:
                yield _image(frame, size).tobytes()


def _image(frame: av.VideoFrame, size: Size) -> Image.Image:
    """Return the upright pixels of a frame, resized to this size by Lanczos on 8 bits."""
    rgb = frame.reformat(format="rgb24", threads=1)  # a confined process has one thread
    plane = rgb.planes[0]
    image = Image.frombuffer("RGB", (rgb.width, rgb.height), bytes(plane), "raw", "RGB", plane.line_size, 1)
    if turns := _quarter_turns(frame):
        image = image.transpose(_COUNTERCLOCKWISE[turns])
    return image.resize((size.width, size.height), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class _Scan:
    size: Size
    num_frames: int
    nth: int  # every nth frame is taken, counted from the last


def _scan(container: InputContainer, max_frames: int, max_pixels: int, fps: int | None) -> _Scan:
    """Decode the whole clip, and check its limits."""
    sizes: set[Size] = set()
    times_s: list[float] = []
    num_pixels = 0
    for frame in _decode(container):
        sizes.add(_upright_size(frame))
        times_s.append(frame.time or 0.0)
        num_pixels += frame.height * frame.width
        _check(len(times_s) <= max_frames, f"has more than {max_frames} frames")
        _check(num_pixels <= max_pixels, f"has more than {max_pixels} pixels in all")
    _check(bool(times_s), "has no frames")
    _check(len(sizes) == 1, "changes its size on the way")
    nth = every_nth(len(times_s), times_s[-1] - times_s[0], fps) if fps else 1
    return _Scan(sizes.pop(), len(times_s), nth)


@contextmanager
def _open(source: BinaryIO) -> Iterator[InputContainer]:
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


def _upright_size(frame: av.VideoFrame) -> Size:
    """Return the size after rotation. Telephones store frames as the sensor is mounted."""
    size = Size(frame.height, frame.width)
    return Size(*size[::-1]) if _quarter_turns(frame) % 2 else size


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Return the rotation to apply, in quarter turns counterclockwise."""
    _check(frame.rotation % 90 == 0, f"is to be shown turned by {frame.rotation}°")
    return frame.rotation // 90 % 4


def _check(fine: bool, problem: str) -> None:
    if not fine:
        raise UnusableMedia(problem)
