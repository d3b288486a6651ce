"""Prompts: cleaned, tokenised, encoded, remembered."""

from __future__ import annotations

import gc
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.traffic import LiveTensors
from model.text import CACHED_PROMPTS, MAX_TOKENS, MOST_UPCOMING, TextEncoder, clean

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

    def counted(prompts):
        computed.extend(prompts)
        return compute(prompts)

    monkeypatch.setattr(encoder, "_compute", counted)
    first = encoder.encode(["a new prompt", " a  new prompt "])
    again = encoder.encode(["a new prompt"])
    assert computed == ["a new prompt"]
    assert torch.equal(first.hidden[1], again.hidden[0])


def test_old_prompts_are_forgotten(encoder, monkeypatch):
    first = encoder.encode(["the cat"])
    monkeypatch.setattr(encoder, "_compute", lambda prompts: [first] * len(prompts))
    for number in range(CACHED_PROMPTS + 10):
        encoder.encode([f"prompt {number}"])
    assert len(encoder._cache) == CACHED_PROMPTS


def test_the_lasting_prompt_is_never_forgotten(parity_checkpoint, monkeypatch):
    """The negative prompt hits however many jobs without guidance came since the last one with it."""
    encoder = TextEncoder.load(parity_checkpoint, CPU, torch.float32, kept=" bad  hands ")
    first = encoder.encode(["bad hands"])
    computed = []

    def counted(prompts):
        computed.extend(prompts)
        return [first] * len(prompts)

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


class Copies(LiveTensors):
    """Record which weights are copied, and what stays alive."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        weights = list(encoder._encoder.parameters())
        self.weight_bytes = sum(weight.nbytes for weight in weights)
        self._weights = {weight.data_ptr() for weight in weights}
        self.copied_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func.name() == "aten::_to_copy" and args[0].data_ptr() in self._weights:
            self.copied_bytes += result.nbytes
        return result


class TestOffloaded:
    """The device is the CPU here as well: a copy of a weight stands for its move to the device."""

    PROMPTS: ClassVar = ["the cat", "", "a dog"]

    @pytest.fixture
    def offloaded(self, parity_checkpoint) -> TextEncoder:
        return TextEncoder.load(parity_checkpoint, CPU, torch.float32, "offload")

    @pytest.mark.parametrize("placement", ["offload", "cpu"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_hidden_states_are_those_of_an_encoder_on_the_device(self, parity_checkpoint, placement, dtype):
        on_device = TextEncoder.load(parity_checkpoint, CPU, dtype)
        elsewhere = TextEncoder.load(parity_checkpoint, CPU, dtype, placement)
        expected, found = on_device.encode(self.PROMPTS), elsewhere.encode(self.PROMPTS)
        assert torch.equal(found.hidden, expected.hidden)
        assert torch.equal(found.mask, expected.mask)

    def test_weights_are_moved_once_for_all_new_prompts_and_never_for_known_ones(self, offloaded):
        with Copies(offloaded) as moved:
            offloaded.encode(self.PROMPTS)
        assert moved.copied_bytes == moved.weight_bytes
        with Copies(offloaded) as moved:
            offloaded.encode([" a  dog", "the cat"])
        assert moved.copied_bytes == 0
        with Copies(offloaded) as moved:
            offloaded.encode(["the cat", "a bird"])
        assert moved.copied_bytes == moved.weight_bytes

    def test_upcoming_prompts_are_encoded_with_the_same_move(self, offloaded):
        with Copies(offloaded) as moved:
            offloaded.encode(["the cat"], upcoming=["a dog", "the cat", "a bird"])
        assert moved.copied_bytes == moved.weight_bytes
        with Copies(offloaded) as moved:
            offloaded.encode(["a dog"], upcoming=["a bird"])
            offloaded.encode(["a bird"], upcoming=["a prompt that is not needed yet"])
        assert moved.copied_bytes == 0

    def test_upcoming_prompts_do_not_evict_each_other(self, offloaded, monkeypatch):
        first = offloaded.encode(["the cat"])
        monkeypatch.setattr(offloaded, "_compute", lambda prompts: [first] * len(prompts))
        prompts = [f"prompt {number}" for number in range(2 * CACHED_PROMPTS)]
        offloaded.encode(prompts[:2], upcoming=prompts[2:])
        assert offloaded._missing(prompts[: 2 + MOST_UPCOMING]) == []

    def test_encoder_on_the_device_encodes_a_prompt_when_it_is_needed(self, encoder):
        encoder.encode(["the sun"], upcoming=["the moon"])
        assert encoder._missing(["the sun", "the moon"]) == ["the moon"]

    def test_weights_leave_the_device_after_encoding(self, offloaded):
        with Copies(offloaded) as moved:
            text = offloaded.encode(["the cat"])
        assert moved.peak_bytes > moved.weight_bytes
        cached = text.hidden.nbytes + text.mask.nbytes
        assert moved.alive_bytes <= 2 * cached  # the result and the cache's

    def test_weights_leave_the_device_after_a_failure(self, offloaded, monkeypatch):
        def run_out_of_memory(*_args: object, **_options: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(offloaded._encoder, "forward", run_out_of_memory)
        with Copies(offloaded) as moved, pytest.raises(torch.OutOfMemoryError):
            offloaded.encode(["the cat"])
        gc.collect()
        assert (moved.copied_bytes, moved.alive_bytes) == (moved.weight_bytes, 0)
        monkeypatch.undo()
        assert offloaded.encode(["the cat"]).mask.sum() > 0

    def test_results_are_on_the_device_wherever_the_encoder_ran(self, parity_checkpoint):
        encoder = TextEncoder.load(parity_checkpoint, torch.device("meta"), torch.float32, "cpu")
        assert {part.device.type for part in encoder.encode(["the cat"])} == {"meta"}
