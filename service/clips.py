"""Making sure that a clip decodes from end to end, and counting what is in it. Called by `service.inputs`.

The file stays as it is; what is told of it is what the model will see: upright, at the model's frame rate.
Only containers that cannot point to other files or hosts are opened, and what kind of file it is says its
content, never its name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer

from model.spec.shapes import Clip, every_nth, frames_taken
from service.errors import UnusableInput

_MEDIA_TYPES = {"mov,mp4,m4a,3gp,3g2,mj2": "video/mp4", "matroska,webm": "video/webm"}
_MAX_FRAME_PIXELS = 4096 * 2304
_CODECS = "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,mpeg4,mpeg1video,mpeg2video,mjpeg,prores,ffv1"
_OPTIONS = {
    "format_whitelist": ",".join(_MEDIA_TYPES),
    "codec_whitelist": _CODECS,
    "protocol_whitelist": "file",
}


@dataclass(frozen=True)
class ClipLimits:
    """How much of a clip is decoded before it is refused; pixels over all frames together."""

    max_frames: int = 3000
    max_pixels: int = 1_000_000_000
    timeout_s: float = 60.0


def probe_clip(path: Path, limits: ClipLimits, fps: int) -> tuple[Clip, str]:
    """Decode the clip at `path`; returns its size, frames and media type. Raises UnusableInput.

    Of a clip with more than `fps` frames a second those are counted that `model.film` will take.
    """
    try:
        with av.open(str(path), options=_OPTIONS) as container:
            return _count(container, limits, fps), _MEDIA_TYPES[container.format.name]
    except av.error.FFmpegError as error:
        raise UnusableInput("is damaged, or not an MP4, MOV, WebM or Matroska clip") from error


def _count(container: InputContainer, limits: ClipLimits, fps: int) -> Clip:
    sizes: set[tuple[int, int]] = set()
    times_s: list[float] = []
    num_pixels = 0
    for frame in _frames(container, limits.timeout_s):
        sizes.add(_size(frame))
        times_s.append(frame.time or 0.0)
        num_pixels += frame.height * frame.width
        _check(len(times_s) <= limits.max_frames, f"has more than {limits.max_frames} frames")
        _check(num_pixels <= limits.max_pixels, f"has more than {limits.max_pixels} pixels in all")
    _check(bool(times_s), "has no frames")
    _check(len(sizes) == 1, "changes its size on the way")
    nth = every_nth(len(times_s), times_s[-1] - times_s[0], fps)
    return Clip(*sizes.pop(), frames_taken(len(times_s), nth))


def _size(frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width as it is to be shown: telephones store what they see as the sensor lies."""
    _check(frame.rotation % 90 == 0, f"is to be shown turned by {frame.rotation}°")
    upright = frame.height, frame.width
    return upright if frame.rotation % 180 == 0 else upright[::-1]


def _frames(container: InputContainer, timeout_s: float) -> Iterator[av.VideoFrame]:
    deadline = time.monotonic() + timeout_s
    _check(bool(container.streams.video), "has no video stream")
    stream = container.streams.video[0]
    _check(stream.width * stream.height <= _MAX_FRAME_PIXELS, "has frames larger than 4096 × 2304")
    stream.codec_context.options = {"max_pixels": str(_MAX_FRAME_PIXELS)}  # a file may say less
    for frame in container.decode(stream):
        _check(time.monotonic() < deadline, f"takes longer than {timeout_s:g} s to decode")
        yield frame


def _check(fine: bool, problem: str) -> None:
    if not fine:
        raise UnusableInput(problem)
