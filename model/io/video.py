"""Write frames to MP4 files, and read images and clips from files, decoded in confined processes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from zipfile import BadZipFile

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace
from jaxtyping import UInt8
from torch import Tensor

from model.media import reading
from model.media.errors import UnusableMedia
from model.media.formats import CHECKED_CLIP, ImageLimits
from model.media.sandbox import Sandbox
from model.spec.errors import InputError
from model.spec.geometry import Clip, Size

STILL_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}

# The service has checked its inputs by limits that its operator sets; here memory and time are bounded.
DECODE_MEMORY_BYTES = 1 << 30
_IMAGE_LIMITS = ImageLimits(min_side=1, max_pixels=1 << 30, timeout_s=600.0)


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes an H.264 MP4 (yuv420p, BT.709, with the index first) frame by frame."""

    def __init__(self, path: Path, size: Size, fps: int, crf: int = 18, preset: str = "veryfast") -> None:
        """Open the file. `crf` is the quality of x264 (0 is lossless), `preset` its effort."""
        self.num_frames = 0
        self._container = av.open(path, "w", format="mp4", options={"movflags": "+faststart"})
        # Without `cpu-independent`, the same frames give different files: x264's assembly for the macroblock
        # tree reads uninitialised memory.
        options = {"crf": str(crf), "preset": preset, "x264-params": "cpu-independent=1"}
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps), options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1  # BT.709
        context.color_range = 1  # limited

    def add(self, frames: UInt8[Tensor, "frames height width 3"]) -> None:
        """Append frames."""
        for frame in frames.numpy():
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            # By default, each call starts a thread for each core and ends it again.
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, threads=1)
            self._container.mux(self._stream.encode(picture))
            self.num_frames += 1

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_image(
    path: Path, field: str = "image", sandbox: Sandbox | None = None
) -> UInt8[Tensor, "height width 3"]:
    """Read an image, or a `.npz` of one frame. Raises InputError."""
    if path.suffix.lower() not in {*STILL_SUFFIXES, ".npz"}:
        raise InputError(field, f"{path} is not an image by its name")
    frames = read_clip(path, field, sandbox=sandbox)
    if len(frames) != 1:
        raise InputError(field, f"{path} has {len(frames)} frames, not one")
    return frames[0]


def measure_clip(
    path: Path, field: str = "video", fps: int | None = None, sandbox: Sandbox | None = None
) -> Clip:
    """Return the size of a clip, and how many frames `read_clip` takes of it. Raises InputError."""
    if path.suffix == ".npz" or path.suffix.lower() in STILL_SUFFIXES:
        frames = read_clip(path, field, sandbox=sandbox)
        return Clip(frames.shape[1], frames.shape[2], len(frames))
    with _decoding(path, field, sandbox) as decoder:
        return reading.check_clip(decoder, path, CHECKED_CLIP, fps).clip


def read_clip(
    path: Path,
    field: str = "video",
    fps: int | None = None,
    take: Clip | None = None,
    sandbox: Sandbox | None = None,
) -> UInt8[Tensor, "frames height width 3"]:
    """Read a clip, an image, or a `.npz` with `frames` uint8 [n, h, w, 3]. Raises InputError.

    Frames of a clip are upright. With `fps`, about `fps` frames a second are taken, including the last one.
    `take` gives the number of the last frames to read, and their size. Images and arrays ignore it.
    """
    if path.suffix == ".npz":
        return _read_arrays(path, field)
    with _decoding(path, field, sandbox) as decoder:
        if path.suffix.lower() in STILL_SUFFIXES:
            size, pixels = reading.read_image(decoder, path, _IMAGE_LIMITS)
            clip = Clip(*size, num_frames=1)
        else:
            clip, pixels = reading.read_frames(decoder, path, CHECKED_CLIP, fps, take)
    return torch.frombuffer(pixels, dtype=torch.uint8).view(clip.num_frames, clip.height, clip.width, 3)


@contextmanager
def _decoding(path: Path, field: str, sandbox: Sandbox | None) -> Iterator[Sandbox]:
    """Give the sandbox, or one of its own, and name field and file in errors."""
    try:
        if sandbox:
            yield sandbox
        else:
            with Sandbox(memory_bytes=DECODE_MEMORY_BYTES) as own:
                yield own
    except FileNotFoundError:
        raise InputError(field, f"{path} is missing") from None
    except (OSError, UnusableMedia) as error:
        raise InputError(field, f"{path} cannot be read: {error}") from error


def _read_arrays(path: Path, field: str) -> UInt8[Tensor, "frames height width 3"]:
    """Read frames from a file of the operator's own, without pickles."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            frames: np.ndarray = arrays["frames"]
    except FileNotFoundError:
        raise InputError(field, f"{path} is missing") from None
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise InputError(field, f"{path} cannot be read: {error}") from error
    if frames.ndim != 4 or frames.shape[0] < 1 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise InputError(field, f"{path} has no frames, uint8 [n, height, width, 3]")
    return torch.from_numpy(frames.copy())
