"""Prompts are cleaned as LongCat-Video does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.spec import prompt as prompt_module
from model.spec.prompt import clean, unknown_words


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  the  cat\n\tsits ", "the cat sits"),
        ("cat &amp;amp; dog", "cat & dog"),
        ("&lt;3", "<3"),
        ("dogâ€™s", "dog's"),
        ("“mat”", '"mat"'),
        ("", ""),
        ("ｃａｔ", "cat"),
    ],
)
def test_prompts_are_cleaned(prompt, cleaned):
    assert clean(prompt) == cleaned


@given(st.text(max_size=60))
def test_cleaned_prompts_have_no_white_space_to_spare(prompt):
    cleaned = clean(prompt)
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned
    assert "\n" not in cleaned


def test_unknown_words_are_named_once_in_their_order():
    known_words = ["a", "ball", "big", "red"]
    prompts = ["A magenta ball (red, MAGENTA) wobbles 3 times", "été"]
    assert unknown_words(prompts, known_words) == ["magenta", "wobbles", "times", "été"]
    assert unknown_words(["A big, red ball."], known_words) == []


def test_unknown_words_are_looked_for_in_the_text_that_the_model_sees():
    assert unknown_words(["a &lt;ball&gt; &amp;amp; aâ€™s", "ｂａｌｌ"], ["a", "ball", "s"]) == []


def test_prompts_are_not_cleaned_for_a_checkpoint_that_knows_all_words(monkeypatch):
    """Long texts take milliseconds, in which the API answers nobody."""
    monkeypatch.setattr(prompt_module, "clean", None)
    assert unknown_words(["any word"], ()) == []
