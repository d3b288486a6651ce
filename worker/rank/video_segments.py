"""Write a video as one file for each segment, and concatenate them without encoding again.

Every segment begins with a key frame. So a job that resumes in segment 7 keeps the files of the six segments
before it, and its video is the same as without the interruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from model.io.video import VideoWriter
from model.spec.geometry import Size
from worker.digest import sha256_of
from worker.messages import VideoFile

VIDEO, THUMBNAIL = "video.mp4", "thumbnail.jpg"
UNFINISHED_VIDEO, UNFINISHED_SEGMENT = "part-video.mp4", "part-segment.mp4"
THUMBNAIL_SIDE = 640  # pixels of the longer side


@dataclass(frozen=True)
class VideoFormat:
    """The format of a video: its size in pixels, its frame rate, and x264's quality (crf) and preset."""

    size: Size
    fps: int
    crf: int
    preset: str


class VideoSegments:
    """The segments of one video, as files of a folder. `names` are those that are finished already."""

    def __init__(self, folder: Path, video_format: VideoFormat, names: Sequence[str] = ()) -> None:
        self._folder = folder
        self._format = video_format
        self._names = list(names)
        self._digests: dict[str, str] = {}
        self._writer: VideoWriter | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the files of the finished segments, in order."""
        return tuple(self._names)

    @property
    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each of these files. Raises OSError."""
        for name in self._names:
            if name not in self._digests:
                self._digests[name] = sha256_of(self._folder / name)
        return dict(self._digests)

    def write(self, frames: UInt8[Tensor, "frames height width 3"]) -> None:
        """Append frames to the current segment. Raises OSError."""
        if self._writer is None:
            size, fps = self._format.size, self._format.fps
            self._writer = VideoWriter(self._unfinished, size, fps, self._format.crf, self._format.preset)
        self._writer.add(frames)

    def finish(self) -> None:
        """Finish the current segment. Raises OSError."""
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        name = f"segment-{len(self._names):03}.mp4"
        self._unfinished.replace(self._folder / name)
        self._names.append(name)

    def abort(self) -> None:
        """Remove the current segment. Where that fails, the next one replaces it."""
        self._writer = None
        with suppress(OSError):
            self._unfinished.unlink()

    def concat(self) -> VideoFile:
        """Write the whole video and its thumbnail. Raises OSError."""
        unfinished, video = self._folder / UNFINISHED_VIDEO, self._folder / VIDEO
        num_frames = concat([self._folder / name for name in self._names], unfinished)
        save_thumbnail(unfinished, self._folder / THUMBNAIL)
        unfinished.replace(video)
        return VideoFile(
            video=VIDEO,
            thumbnail=THUMBNAIL,
            width=self._format.size.width,
            height=self._format.size.height,
            num_frames=num_frames,
            fps=self._format.fps,
            size_bytes=video.stat().st_size,
            sha256=sha256_of(video),
        )

    @property
    def _unfinished(self) -> Path:
        return self._folder / UNFINISHED_SEGMENT


def concat(segments: Sequence[Path], video: Path) -> int:
    """Copy the packets of several files of one format into one file. Return its number of frames.

    Raises OSError.
    """
    num_frames = 0
    delay = max(_decoding_delay(segment) for segment in segments)
    with av.open(video, "w", format="mp4", options={"movflags": "+faststart"}) as target:
        for segment in segments:
            with av.open(segment) as source:
                if not target.streams:
                    target.add_stream_from_template(source.streams.video[0])
                for i, packet in enumerate(_packets(source), start=num_frames):
                    assert packet.pts is not None
                    assert packet.duration
                    packet.pts += num_frames * packet.duration
                    packet.dts = i * packet.duration - delay
                    packet.stream = target.streams.video[0]
                    target.mux(packet)
                num_frames += source.streams.video[0].frames
    return num_frames


def _decoding_delay(segment: Path) -> int:
    """Return how long before its presentation the first packet is decoded. Short segments need less."""
    with av.open(segment) as source:
        first = next(_packets(source))
        assert first.dts is not None
        return -first.dts


def _packets(source: InputContainer) -> Iterator[Packet[VideoStream]]:
    """Yield the packets that hold a picture. PyAV's demuxer yields an empty one at the end."""
    return (packet for packet in source.demux(video=0) if packet.dts is not None)


def save_thumbnail(video: Path, thumbnail: Path) -> None:
    """Write the first frame of a video as a JPEG file. Raises OSError."""
    with av.open(video) as container:
        image = Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    image.save(thumbnail, "JPEG", quality=85)
