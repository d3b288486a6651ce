"""Write frames to MP4 files, and read images and clips from files."""

from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from zipfile import BadZipFile

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from model.spec.errors import InputError
from model.spec.geometry import Size, every_nth

STILL_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes an H.264 MP4 (yuv420p, BT.709, with the index first) frame by frame."""

    def __init__(self, path: Path, size: Size, fps: int, crf: int = 18, preset: str = "veryfast") -> None:
        """Open the file. `crf` is the quality of x264 (0 is lossless), `preset` its effort."""
        self.num_frames = 0
        self._container = av.open(path, "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(fps), options={"crf": str(crf), "preset": preset}
        )
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1  # BT.709
        context.color_range = 1  # limited

    def add(self, frames: UInt8[Tensor, "frames height width 3"]) -> None:
        """Append frames."""
        for frame in frames.numpy():
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
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


def read_image(path: Path, field: str = "image") -> UInt8[Tensor, "height width 3"]:
    """An image (PNG, JPEG, or a `.npz` of one frame). Raises InputError."""
    if path.suffix.lower() not in {*STILL_SUFFIXES, ".npz"}:
        raise InputError(field, f"{path} is not an image by its name")
    frames = read_clip(path, field)
    if len(frames) != 1:
        raise InputError(field, f"{path} has {len(frames)} frames, not one")
    return frames[0]


def read_clip(
    path: Path, field: str = "video", fps: int | None = None
) -> UInt8[Tensor, "frames height width 3"]:
    """All frames of a film, an image, or a `.npz` with `frames` uint8 [n, h, w, 3]. Raises InputError.

    Films are turned as they are to be shown. With `fps` only so many frames a second, the last among them.
    """
    try:
        if path.suffix == ".npz":
            frames = _read_arrays(path)
        elif path.suffix.lower() in STILL_SUFFIXES:
            frames = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))[None]
        else:
            frames = _read_film(path, fps)
    except FileNotFoundError:
        raise InputError(field, f"{path} is missing") from None
    except (OSError, KeyError, ValueError, UnidentifiedImageError, BadZipFile, av.FFmpegError) as error:
        raise InputError(field, f"{path} cannot be read: {error}") from error
    if frames.ndim != 4 or frames.shape[0] < 1 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise InputError(field, f"{path} has no frames, uint8 [n, height, width, 3]")
    return torch.from_numpy(frames.copy())


def _read_arrays(path: Path) -> np.ndarray:
    with np.load(path) as arrays:
        frames: np.ndarray = arrays["frames"]
    return frames


def _read_film(path: Path, fps: int | None) -> np.ndarray:
    frames, times_s = [], []
    with av.open(path) as container:
        for frame in container.decode(video=0):
            frames.append(_upright(frame))
            times_s.append(frame.time or 0.0)
    nth = every_nth(len(frames), times_s[-1] - times_s[0], fps) if fps and frames else 1
    return np.stack(frames[::-nth][::-1])


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """Its pixels, turned as the file says; telephones store what they see as the sensor lies."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise ValueError(f"it is to be turned by {frame.rotation}°")
    return np.rot90(frame.to_ndarray(format="rgb24"), turns)
