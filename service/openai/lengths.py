"""Convert lengths in seconds, which OpenAI's API uses, to frames and segments, and back.

The number of frames of a segment is one more than a multiple of 4. Longer videos have several segments, each
of which begins with the last frames of the previous one. A length in seconds is rounded to the nearest length
that is possible with as few segments as can hold it, or with fewer where that is as near.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from model.spec.geometry import FRAME_STRIDE
from model.spec.limits import Limits

SECONDS = re.compile(r"^[0-9]{1,5}(\.[0-9]{1,3})?$")


class Length(NamedTuple):
    """Frames of each segment, including those that repeat the previous one, and number of segments."""

    num_frames: int
    num_segments: int


def parse_seconds(text: str) -> float:
    """Return the seconds in a text such as `8` or `6.2`. Raise ValueError for other texts and for zero."""
    if not SECONDS.fullmatch(text) or not float(text):
        raise ValueError("must be a number of seconds above 0, as in 8 or 6.2")
    return float(text)


def length_of(seconds: float, limits: Limits) -> Length:
    """Return the length of a new video. Raise ValueError if it is longer than the checkpoint allows."""
    num_frames = _nearest(seconds * limits.fps - 1) + 1
    if num_frames <= limits.max_num_frames:
        return Length(num_frames, 1)
    return _segments(seconds * limits.fps - limits.num_condition_frames, limits)


def length_of_extension(seconds: float, limits: Limits) -> Length:
    """Return the length of a continuation of a clip. Raise ValueError if it is too long."""
    return _segments(seconds * limits.fps, limits)


def seconds_text(num_frames: int, limits: Limits) -> str:
    """Return the shortest text that requests so many frames; if there is none, the seconds to 0.01."""
    seconds = num_frames / limits.fps
    for text in (f"{seconds:.0f}", f"{seconds:.1f}"):
        if float(text) and _total(float(text), limits) == num_frames:
            return text
    return f"{seconds:.2f}"


def _total(seconds: float, limits: Limits) -> int | None:
    try:
        length = length_of(seconds, limits)
    except ValueError:
        return None
    return length.num_frames + (length.num_segments - 1) * (length.num_frames - limits.num_condition_frames)


def _segments(new_frames: float, limits: Limits) -> Length:
    """Return the segments of equal length whose new frames are nearest to so many."""
    most = limits.max_num_frames - limits.num_condition_frames
    fewest = max(1, math.ceil(new_frames / (most + FRAME_STRIDE / 2)))
    if fewest > limits.max_num_segments:
        raise ValueError(f"must be at most {limits.max_num_segments * most // limits.fps}")
    enough = min(max(1, math.ceil(new_frames / most)), limits.max_num_segments)

    def new_in_segment(num_segments: int) -> int:
        return min(max(_nearest(new_frames / num_segments), FRAME_STRIDE), most)

    num_segments = min(
        range(fewest, enough + 1), key=lambda number: abs(number * new_in_segment(number) - new_frames)
    )
    return Length(limits.num_condition_frames + new_in_segment(num_segments), num_segments)


def _nearest(frames: float) -> int:
    """Return the nearest multiple of the stride, rounding up halves; not below zero."""
    return max(0, math.floor(frames / FRAME_STRIDE + 0.5) * FRAME_STRIDE)
