"""What a checkpoint's limits say of prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from model.spec.limits import RELEASED_LIMITS, load_limits

POCKET = Path(__file__).parents[3] / "pocket"


def test_unknown_words_are_named_once_in_their_order():
    limits = load_limits(POCKET)
    assert limits.unknown_words("A magenta ball (red, MAGENTA) wobbles 3 times; été") == [
        "magenta",
        "wobbles",
        "times",
        "été",
    ]
    assert limits.unknown_words("A big red ball, moving slowly to the right.") == []


def test_checkpoint_without_a_list_knows_all_words():
    released = load_limits(RELEASED_LIMITS.parent)
    assert released.known_words == ()
    assert released.unknown_words("any word") == []
    assert replace(released, known_words=("any",)).unknown_words("any word") == ["word"]
