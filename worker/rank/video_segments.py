"""A film in pieces, one for each segment, that are joined without encoding anything again.

A piece begins with a picture that needs no other, so a job that is resumed in segment 7 keeps the six pieces
before it, and the film is the same as without the interruption. The leader's backroom writes; it knows
files and frames, and nothing of jobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
from worker.messages import VideoFile

VIDEO, THUMBNAIL = "video.mp4", "thumbnail.jpg"
THUMBNAIL_SIDE = 640  # pixels, the longer one


@dataclass(frozen=True)
class VideoFormat:
    """Pixels, frames a second, which quality (`crf`, lower is better) and how hard x264 tries (`preset`)."""

    size: Size
    fps: int
    crf: int
    preset: str


class VideoSegments:
    """The pieces of one film in a folder, of which some may be there already."""

    def __init__(self, folder: Path, form: VideoFormat, names: Sequence[str] = ()) -> None:
        self._folder = folder
        self._form = form
        self._names = list(names)
        self._writer: VideoWriter | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The finished pieces, in order."""
        return tuple(self._names)

    def write(self, frames: UInt8[Tensor, "n height width 3"]) -> None:
        """Add frames to the piece at hand. Raises OSError."""
        if self._writer is None:
            form = self._form
            self._writer = VideoWriter(self._part, form.size, form.fps, form.crf, form.preset)
        self._writer.add(frames)

    def cut(self) -> None:
        """The piece at hand is whole. Raises OSError."""
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        name = f"piece-{len(self._names):03}.mp4"
        self._part.replace(self._folder / name)
        self._names.append(name)

    def drop(self) -> None:
        """Forget the piece at hand."""
        self._writer = None
        self._part.unlink(missing_ok=True)

    def join(self) -> VideoFile:
        """The whole film, with its thumbnail. Raises OSError."""
        video = self._folder / VIDEO
        part = video.with_name(f"part-{VIDEO}")
        num_frames = join([self._folder / name for name in self._names], part)
        save_thumbnail(part, self._folder / THUMBNAIL)
        part.replace(video)
        with video.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return VideoFile(
            video=VIDEO,
            thumbnail=THUMBNAIL,
            width=self._form.size.width,
            height=self._form.size.height,
            num_frames=num_frames,
            fps=self._form.fps,
            size_bytes=video.stat().st_size,
            sha256=sha256,
        )

    @property
    def _part(self) -> Path:
        return self._folder / "part-piece.mp4"


def join(pieces: Sequence[Path], film: Path) -> int:
    """Write one film of several of the same format, copying their packets; the number of frames.

    Raises OSError.
    """
    num_frames = 0
    delay = max(_delay(piece) for piece in pieces)
    with av.open(film, "w", format="mp4", options={"movflags": "+faststart"}) as target:
        for piece in pieces:
            with av.open(piece) as source:
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


def _delay(piece: Path) -> int:
    """How long before its picture is shown the first packet is decoded: short pieces need less."""
    with av.open(piece) as source:
        first = next(_packets(source))
        assert first.dts is not None
        return -first.dts


def _packets(source: InputContainer) -> Iterator[Packet[VideoStream]]:
    """Those with a picture; the demuxer ends with one that has none."""
    return (packet for packet in source.demux(video=0) if packet.dts is not None)


def save_thumbnail(film: Path, thumbnail: Path) -> None:
    """The film's first frame as a JPEG. Raises OSError."""
    with av.open(film) as container:
        image = Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    image.save(thumbnail, "JPEG", quality=85)
