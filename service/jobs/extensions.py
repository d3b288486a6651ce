"""From seconds to frames and segments, and back: what lengths the OpenAI-compatible routes can order.

Called by `service.openai.bodies` and `service.openai.views`. A checkpoint makes 4k + 1 frames at a time, and
longer videos of several segments, each of which begins with the last frames of the one before. So a length in
seconds is brought to the nearest that there is: within two frames for each segment, of which there are as few
as can hold it.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from model.spec.shapes import FRAME_STRIDE, Limits

SECONDS = re.compile(r"^[0-9]{1,5}(\.[0-9]{1,3})?$")


class Length(NamedTuple):
    """Frames of each segment, those repeated included, and how many segments there are."""

    num_frames: int
    num_segments: int


def parse_seconds(text: str) -> float:
    """Seconds as clients write them: `"8"`, `"6.2"`. Raises ValueError for anything else, and for zero."""
    if not SECONDS.fullmatch(text) or not float(text):
        raise ValueError("must be seconds, as in 8 or 6.2")
    return float(text)


def length_of(seconds: float, limits: Limits) -> Length:
    """A new video of about so many seconds. Raises ValueError if the checkpoint makes none so long."""
    num_frames = _nearest(seconds * limits.fps - 1) + 1
    if num_frames <= limits.max_num_frames:
        return Length(num_frames, 1)
    return _segments(seconds * limits.fps - limits.num_condition_frames, limits)


def length_of_extension(seconds: float, limits: Limits) -> Length:
    """About so many seconds more, behind the frames taken over from a clip. Raises ValueError as above."""
    return _segments(seconds * limits.fps, limits)


def seconds_text(num_frames: int, limits: Limits) -> str:
    """The shortest text that orders a video of so many frames; else its seconds, to the hundredth."""
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
    """As few segments as can hold so many frames beside those that each takes over, all of one length."""
    most = limits.max_num_frames - limits.num_condition_frames
    num_segments = max(1, math.ceil(new_frames / (most + FRAME_STRIDE / 2)))
    if num_segments > limits.max_num_segments:
        raise ValueError(f"must be at most {limits.max_num_segments * most // limits.fps}")
    new = min(max(_nearest(new_frames / num_segments), FRAME_STRIDE), most)
    return Length(limits.num_condition_frames + new, num_segments)


def _nearest(frames: float) -> int:
    """The multiple of the stride that is nearest, the larger of two; not below zero."""
    return max(0, math.floor(frames / FRAME_STRIDE + 0.5) * FRAME_STRIDE)
