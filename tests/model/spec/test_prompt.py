"""Prompts are cleaned as LongCat-Video does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.spec.prompt import clean


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
