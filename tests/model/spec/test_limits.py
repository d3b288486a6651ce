"""What a checkpoint's limits say of prompts."""

from __future__ import annotations

from pathlib import Path

from model.spec.limits import RELEASED_LIMITS, load_limits

POCKET = Path(__file__).parents[3] / "pocket"


def test_released_checkpoint_has_no_list_of_words():
    assert load_limits(RELEASED_LIMITS.parent).known_words == ()


def test_known_words_are_published_apart_from_the_limits():
    limits = load_limits(POCKET)
    assert limits.known_words
    assert "known_words" not in limits.to_json()
