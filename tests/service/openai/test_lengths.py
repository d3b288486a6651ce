"""Seconds become frames and segments that the checkpoint makes, and those become seconds again."""

from __future__ import annotations

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
def test_the_released_checkpoint_makes(seconds, length):
    assert length_of(seconds, RELEASED) == length


@pytest.mark.parametrize(
    ("seconds", "length"), [(0.01, (17, 1)), (4, (73, 1)), (5.3, (93, 1)), (8, (73, 2)), (20, (89, 4))]
)
def test_the_released_checkpoint_goes_on_for(seconds, length):
    assert length_of_extension(seconds, RELEASED) == length


@pytest.mark.parametrize("limits", [LIMITS, RELEASED])
@given(seconds=st.floats(0.01, 300))
def test_what_is_made_is_legal_and_near(limits, seconds):
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
def test_an_extension_is_legal_and_near(limits, seconds):
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
def test_the_text_orders_the_same_again(limits, seconds):
    try:
        num_frames = total(length_of(seconds, limits), limits)
    except ValueError:
        return
    text = seconds_text(num_frames, limits)
    assert float(text) == pytest.approx(num_frames / limits.fps, abs=0.51)
    if len(text.partition(".")[2]) < 2:
        assert total(length_of(float(text), limits), limits) == num_frames


@pytest.mark.parametrize("seconds", ["4", "8", "12"])
def test_what_openais_clients_order_is_said_back_in_their_words(seconds):
    num_frames = total(length_of(float(seconds), RELEASED), RELEASED)
    assert seconds_text(num_frames, RELEASED) == seconds


def test_a_length_that_nothing_orders_is_said_to_the_hundredth():
    assert seconds_text(94, RELEASED) == "6.27"


def test_what_is_too_long_says_how_long_it_may_be():
    with pytest.raises(ValueError, match="must be at most 213"):
        length_of(600, RELEASED)
    assert length_of(213, RELEASED).num_segments <= RELEASED.max_num_segments


@pytest.mark.parametrize("text", ["4", "6.2", "0.001", "99999", "08"])
def test_seconds_are_read(text):
    assert parse_seconds(text) == float(text)


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "-1", "4s", " 4", "4.", ".5", "1e3", "inf", "nan", "٤", "4\n"]
)
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ValueError, match="must be seconds"):
        parse_seconds(text)
