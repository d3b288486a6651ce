"""Prompts: cleaned, tokenised, encoded, remembered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.text import CACHED_PROMPTS, MAX_TOKENS, TextEncoder, clean

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(parity_checkpoint) -> TextEncoder:
    return TextEncoder.load(parity_checkpoint, CPU, torch.float32)


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


def test_prompts_are_padded_to_512_tokens(encoder):
    text = encoder.encode(["the cat", "a much longer prompt about a cat"])
    assert text.hidden.shape == (2, MAX_TOKENS, 32)
    assert text.mask.shape == (2, MAX_TOKENS)
    assert text.mask[0].sum() < text.mask[1].sum()


def test_the_empty_prompt_is_one_token(encoder):
    assert encoder.encode([""]).mask.sum() == 1


def test_long_prompts_are_cut(encoder):
    text = encoder.encode(["cat " * 2000])
    assert text.mask.sum() == MAX_TOKENS


def test_a_prompt_is_encoded_once(encoder, monkeypatch):
    computed = []
    compute = encoder._compute

    def counted(prompt):
        computed.append(prompt)
        return compute(prompt)

    monkeypatch.setattr(encoder, "_compute", counted)
    first = encoder.encode(["a new prompt", " a  new prompt "])
    again = encoder.encode(["a new prompt"])
    assert computed == ["a new prompt"]
    assert torch.equal(first.hidden[1], again.hidden[0])


def test_old_prompts_are_forgotten(encoder, monkeypatch):
    first = encoder.encode(["the cat"])
    monkeypatch.setattr(encoder, "_compute", lambda _: first)
    for number in range(CACHED_PROMPTS + 10):
        encoder.encode([f"prompt {number}"])
    assert len(encoder._cache) == CACHED_PROMPTS


def test_the_lasting_prompt_is_never_forgotten(parity_checkpoint, monkeypatch):
    """The negative prompt hits however many jobs without guidance came since the last one with it."""
    encoder = TextEncoder.load(parity_checkpoint, CPU, torch.float32, pinned=" bad  hands ")
    first = encoder.encode(["bad hands"])
    computed = []

    def counted(prompt):
        computed.append(prompt)
        return first

    monkeypatch.setattr(encoder, "_compute", counted)
    for number in range(CACHED_PROMPTS + 10):
        encoder.encode([f"prompt {number}"])
    assert len(encoder._cache) == CACHED_PROMPTS
    assert torch.equal(encoder.encode(["bad\nhands"]).hidden, first.hidden)
    assert "bad hands" not in computed


def test_prompts_do_not_depend_on_their_neighbours(encoder):
    together = encoder.encode(["one thing", "another thing altogether"])
    torch.testing.assert_close(together.hidden[:1], encoder.encode(["one thing"]).hidden)


def test_hidden_states_have_the_wanted_dtype(tiny_checkpoint):
    encoder = TextEncoder.load(tiny_checkpoint, CPU, torch.bfloat16)
    assert encoder.encode(["a cat"]).hidden.dtype == torch.bfloat16
