"""Check and read images and clips in a sandbox. Blocking functions, safe to call from several threads.

They raise UnusableMedia for a file that cannot be used, SandboxUnavailable, OSError if it cannot be opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from model.media.errors import UnusableMedia
from model.media.formats import MAX_FRAME_PIXELS, MAX_KEPT_PIXELS, MEDIA_TYPES, ClipLimits, ImageLimits
from model.media.sandbox import Sandbox
from model.spec.geometry import Clip, Size

_MAX_PNG_BYTES = 4 * MAX_KEPT_PIXELS  # three bytes for each pixel, and some for the PNG format
_UNSEEN_SPEEDUP = 0.05
_NOTES = {  # by the facts that decoders return
    "is_animated": "only the first frame of the animation is used",
    "has_unreadable_profile": "its color profile cannot be used, so its colors may be wrong",
    "has_no_profile": "its CMYK has no color profile, so its colors may be wrong",
    "has_unknown_colors": "its color space is unknown, so its colors may be wrong",
    "is_hdr": "its HDR is converted to SDR",
    "has_gain_map": "its gain map for HDR is not used, only the image without it",
    "is_wide_gamut": "its colors outside of sRGB are clipped",
    "is_transparent": "its transparent parts become white",
    "has_unread_alpha": "its transparency is not used",
    "is_interlaced": "is interlaced: only one of the two fields of each frame is used",
    "has_wide_pixels": "its pixels are not square; they are made square",
    "has_uneven_frames": "its frame rate varies; it is resampled by the times of its frames",
    "has_sound": "its sound is not used",
}


class CheckedImage(NamedTuple):
    """An image that can be decoded. `notes` tell what is lost of it, for people."""

    size: Size
    notes: tuple[str, ...]


class CheckedClip(NamedTuple):
    """A clip that can be decoded, with the number of frames to read. `notes` tell what is lost of it."""

    clip: Clip
    media_type: str
    notes: tuple[str, ...]


def check_image(sandbox: Sandbox, source: Path, target: Path, limits: ImageLimits) -> CheckedImage:
    """Write the image to `target` as an upright PNG in sRGB.

    Of an animation, take the first frame. Transparent parts become white.
    """
    with sandbox.decode("encode_png", source, limits.timeout_s, limits.arguments) as decoded:
        decoded.save(target, _MAX_PNG_BYTES)
        return CheckedImage(Size(*_sides(decoded.facts, MAX_KEPT_PIXELS)), _notes(decoded.facts))


def check_clip(sandbox: Sandbox, path: Path, limits: ClipLimits, fps: int | None) -> CheckedClip:
    """Decode the whole clip.

    `read_frames` takes fewer frames of a clip that has more than `fps` a second.
    """
    with sandbox.decode("count_frames", path, limits.timeout_s, {"fps": fps, **limits.arguments}) as decoded:
        clip = _clip(decoded.facts)
        media_type = str(decoded.facts.get("media_type"))
    if clip.num_frames > limits.max_frames or media_type not in MEDIA_TYPES.values():
        raise UnusableMedia("cannot be decoded")
    return CheckedClip(clip, media_type, (*_rate_notes(decoded.facts, fps), *_notes(decoded.facts)))


def check_frame(sandbox: Sandbox, source: Path, target: Path, limits: ClipLimits, index: int) -> CheckedImage:
    """Write a frame of the clip to `target` as a PNG. A negative index counts from the end."""
    arguments = {"index": index, **limits.arguments}
    with sandbox.decode("encode_frame", source, limits.timeout_s, arguments) as decoded:
        decoded.save(target, _MAX_PNG_BYTES)
        return CheckedImage(Size(*_sides(decoded.facts, MAX_FRAME_PIXELS)), ())


def read_image(sandbox: Sandbox, path: Path, limits: ImageLimits) -> tuple[Size, bytearray]:
    """Return the size and the pixels of the image that `check_image` writes: RGB, row by row."""
    with sandbox.decode("read_pixels", path, limits.timeout_s, limits.arguments) as decoded:
        size = Size(*_sides(decoded.facts, MAX_KEPT_PIXELS))
        pixels = bytearray(size.height * size.width * 3)
        decoded.fill(memoryview(pixels))
        return size, pixels


def read_frames(
    sandbox: Sandbox, path: Path, limits: ClipLimits, fps: int | None, take: Clip | None = None
) -> tuple[Clip, bytearray]:
    """Return frames of the clip as bytes: RGB, row by row, frame by frame.

    `take` gives the number of the last frames to return, and their size. Without it, all are returned in
    their own size.
    """
    arguments = {"fps": fps, "take": take, **limits.arguments}
    with sandbox.decode("read_frames", path, limits.timeout_s, arguments) as decoded:
        clip = take or _clip(decoded.facts)
        frames = bytearray(clip.num_frames * clip.height * clip.width * 3)
        decoded.fill(memoryview(frames))
        return clip, frames


def _notes(facts: dict[str, Any]) -> tuple[str, ...]:
    return tuple(note for fact, note in _NOTES.items() if facts.get(fact) is True)


def _rate_notes(facts: dict[str, Any], fps: int | None) -> Iterator[str]:
    """Yield what the frame rate of the model, a whole part of the clip's, changes."""
    nth, speed = facts.get("nth"), facts.get("speed")
    if isinstance(nth, int) and nth > 1:
        yield f"one of {nth} frames is used, because the model makes {fps} a second"
    if isinstance(speed, float) and abs(math.log(max(speed, 1e-3))) > _UNSEEN_SPEEDUP:
        yield f"its motion becomes {speed:.3g} times as fast, because the model makes {fps} frames a second"


def _clip(facts: dict[str, Any]) -> Clip:
    num_frames = facts.get("num_frames")
    if not isinstance(num_frames, int) or num_frames < 1:
        raise UnusableMedia("cannot be decoded")
    return Clip(*_sides(facts, MAX_FRAME_PIXELS), num_frames)


def _sides(facts: dict[str, Any], max_pixels: int) -> tuple[int, int]:
    """Return height and width. Check them, since a file may have taken control of the child."""
    height, width = facts.get("height"), facts.get("width")
    if (
        isinstance(height, int)
        and isinstance(width, int)
        and min(height, width) > 0
        and height * width <= max_pixels
    ):
        return height, width
    raise UnusableMedia("cannot be decoded")
