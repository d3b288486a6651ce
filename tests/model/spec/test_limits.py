"""What a checkpoint's limits say of prompts."""

from __future__ import annotations

from pathlib import Path

from model.spec.limits import RELEASED_LIMITS, load_limits, unknown_words

POCKET = Path(__file__).parents[3] / "pocket"


def test_unknown_words_are_named_once_in_their_order():
    known_words = load_limits(POCKET).known_words
    text = "A magenta ball (red, MAGENTA) wobbles 3 times; été"
    assert unknown_words(text, known_words) == ["magenta", "wobbles", "times", "été"]
    assert unknown_words("A big red ball, moving slowly to the right.", known_words) == []


def test_checkpoint_without_a_list_knows_all_words():
    known_words = load_limits(RELEASED_LIMITS.parent).known_words
    assert known_words == ()
    assert unknown_words("any word", known_words) == []


def test_known_words_are_published_apart_from_the_limits():
    limits = load_limits(POCKET)
    assert limits.known_words
    assert "known_words" not in limits.to_json()
