"""Seconds become frames and segments that the checkpoint makes, and those become seconds again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.spec.limits import Limits
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from service.openai.lengths import length_of, length_of_extension, parse_seconds, seconds_text
from tests.service.conftest import LIMITS

RELEASED = Limits.from_json({})


def total(length, limits):
    num_frames, num_segments = length
    return num_frames + (num_segments - 1) * (num_frames - limits.num_condition_frames)


@pytest.mark.parametrize(
    ("seconds", "length"),
    [
        (0.01, (1, 1)),
        (1, (17, 1)),
        (4, (61, 1)),
        (6, (89, 1)),
        (6.2, (93, 1)),
        (8, (65, 2)),
        (12, (69, 3)),
        (16, (89, 3)),
        (20, (85, 4)),
        (60, (93, 11)),
    ],
)
def test_seconds_become_frames_and_segments_of_the_released_checkpoint(seconds, length):
    assert length_of(seconds, RELEASED) == length


@pytest.mark.parametrize(
    ("seconds", "length"), [(0.01, (17, 1)), (4, (73, 1)), (5.3, (93, 1)), (8, (73, 2)), (20, (89, 4))]
)
def test_seconds_of_an_extension_become_frames_and_segments(seconds, length):
    assert length_of_extension(seconds, RELEASED) == length


@pytest.mark.parametrize(
    ("seconds", "length"),
    [
        (12, (17, 15)),  # 185 frames; 13 segments, whose frames would round down, make 161
        (1.2, (17, 1)),  # two segments would be no nearer
        (20, (17, 25)),
    ],
)
def test_short_segments_make_the_nearest_length(seconds, length):
    assert length_of(seconds, replace(RELEASED, max_num_frames=17, num_condition_frames=5)) == length


@pytest.mark.parametrize("limits", [LIMITS, RELEASED])
@given(seconds=st.floats(0.01, 300))
def test_length_is_legal_and_near_the_requested_one(limits, seconds):
    try:
        length = length_of(seconds, limits)
    except ValueError:
        assert seconds * limits.fps > 0.9 * total((limits.max_num_frames, limits.max_num_segments), limits)
        return
    segments = length.num_segments if length.num_segments > 1 else None
    plan = resolve(GenerationParams(num_frames=length.num_frames, num_segments=segments), Inputs(), limits)
    assert plan.total_frames == total(length, limits)
    assert abs(plan.total_frames - seconds * limits.fps) <= 2 * length.num_segments + 1


@pytest.mark.parametrize("limits", [LIMITS, RELEASED])
@given(seconds=st.floats(0.01, 200))
def test_length_of_an_extension_is_legal_and_near_the_requested_one(limits, seconds):
    try:
        length = length_of_extension(seconds, limits)
    except ValueError:
        return
    assert length.num_frames <= limits.max_num_frames
    assert length.num_frames % 4 == 1
    new = length.num_segments * (length.num_frames - limits.num_condition_frames)
    assert abs(new - seconds * limits.fps) <= max(4, 2 * length.num_segments + 1)


@pytest.mark.parametrize("limits", [LIMITS, RELEASED])
@given(seconds=st.integers(1, 60))
def test_shown_seconds_request_the_same_length_again(limits, seconds):
    try:
        num_frames = total(length_of(seconds, limits), limits)
    except ValueError:
        return
    text = seconds_text(num_frames, limits)
    assert float(text) == pytest.approx(num_frames / limits.fps, abs=0.51)
    if len(text.partition(".")[2]) < 2:
        assert total(length_of(float(text), limits), limits) == num_frames


@pytest.mark.parametrize("seconds", ["4", "8", "12"])
def test_seconds_of_openais_clients_are_shown_as_they_were_sent(seconds):
    num_frames = total(length_of(float(seconds), RELEASED), RELEASED)
    assert seconds_text(num_frames, RELEASED) == seconds


def test_length_that_no_seconds_give_is_shown_to_the_hundredth():
    assert seconds_text(94, RELEASED) == "6.27"


def test_error_for_too_many_seconds_names_the_limit():
    with pytest.raises(ValueError, match="must be at most 213"):
        length_of(600, RELEASED)
    assert length_of(213, RELEASED).num_segments <= RELEASED.max_num_segments


@pytest.mark.parametrize("text", ["4", "6.2", "0.001", "99999", "08"])
def test_seconds_are_read(text):
    assert parse_seconds(text) == float(text)


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "-1", "4s", " 4", "4.", ".5", "1e3", "inf", "nan", "٤", "4\n"]
)
def test_text_that_is_not_a_number_of_seconds_is_refused(text):
    with pytest.raises(ValueError, match="must be a number of seconds above 0"):
        parse_seconds(text)
