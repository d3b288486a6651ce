"""List the file formats, codecs and sizes that are decoded, in the service and in the worker alike."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP")
MAX_KEPT_PIXELS = 4096 * 4096
"""Larger images are reduced to this many pixels. The model's largest size has less than a tenth of them."""

MEDIA_TYPES = {"mov,mp4,m4a,3gp,3g2,mj2": "video/mp4", "matroska,webm": "video/webm"}
"""Media types by FFmpeg's names of the containers. None of these containers can point to other files."""
CODECS = "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,mpeg4,mpeg1video,mpeg2video,mjpeg,prores,ffv1"
MAX_FRAME_PIXELS = 4096 * 2304


@dataclass(frozen=True)
class ImageLimits:
    """The largest size of an image, and the longest time that decoding may take."""

    min_side: int = 16
    max_pixels: int = 50_000_000
    timeout_s: float = 20.0

    @property
    def arguments(self) -> dict[str, int]:
        """Return the limits that a decoder checks. The sandbox enforces the time."""
        return {"min_side": self.min_side, "max_pixels": self.max_pixels}


@dataclass(frozen=True)
class ClipLimits:
    """The largest clip; pixels of all frames together."""

    max_frames: int = 3000
    max_pixels: int = 1_000_000_000
    timeout_s: float = 60.0

    @property
    def arguments(self) -> dict[str, int]:
        """Return the limits that a decoder checks. The sandbox enforces the time."""
        return {"max_frames": self.max_frames, "max_pixels": self.max_pixels}


CHECKED_CLIP = ClipLimits(max_frames=1 << 30, max_pixels=1 << 50, timeout_s=600.0)
"""For clips whose size was checked when they were accepted or made: only the time is limited."""
