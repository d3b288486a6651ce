"""Prompts are tokenised, encoded and cached."""

from __future__ import annotations

import gc
from typing import ClassVar

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks.traffic import LiveTensors
from model.text import CACHED_PROMPTS, MAX_TOKENS, TextEncoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(parity_checkpoint) -> TextEncoder:
    return TextEncoder.load(parity_checkpoint, CPU, torch.float32)


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


def test_known_prompts_take_no_memory_of_the_device(parity_checkpoint):
    elsewhere = TextEncoder.load(parity_checkpoint, torch.device("meta"), torch.float32, "cpu")
    text = elsewhere.encode(["the cat"])
    assert {x.device.type for x in text} == {"meta"}
    assert {x.device.type for kept in elsewhere._cache.values() for x in kept} == {"cpu"}


def test_old_prompts_are_forgotten(encoder, monkeypatch):
    first = encoder.encode(["the cat"])
    monkeypatch.setattr(encoder, "_compute", lambda _: first)
    for number in range(CACHED_PROMPTS + 10):
        encoder.encode([f"prompt {number}"])
    assert len(encoder._cache) == CACHED_PROMPTS


def test_kept_prompt_stays_in_the_cache(parity_checkpoint, monkeypatch):
    """The negative prompt hits however many jobs without guidance came since the last one with it."""
    encoder = TextEncoder.load(parity_checkpoint, CPU, torch.float32, kept=" bad  hands ")
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


class Copies(LiveTensors):
    """Record which weights are copied, and what stays alive."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        stack = encoder._encoder.encoder
        self.layer_bytes = sum(weight.nbytes for weight in stack.block[0].parameters())
        self.moved_bytes = len(stack.block) * self.layer_bytes + stack.final_layer_norm.weight.nbytes
        self._weights = {weight.data_ptr() for weight in stack.parameters()}
        self._copies: list[tuple[StorageWeakRef, int]] = []
        self.copied_bytes = self.most_copies_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func.name() == "aten::_to_copy" and args[0].data_ptr() in self._weights:
            self.copied_bytes += result.nbytes
            self._copies.append((StorageWeakRef(result.untyped_storage()), result.nbytes))
            alive_bytes = sum(size for copy, size in self._copies if not copy.expired())
            self.most_copies_bytes = max(self.most_copies_bytes, alive_bytes)
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

    def test_layers_are_moved_for_each_new_prompt_and_never_for_known_ones(self, offloaded):
        with Copies(offloaded) as moved:
            offloaded.encode(self.PROMPTS)
        assert moved.copied_bytes == len(self.PROMPTS) * moved.moved_bytes
        with Copies(offloaded) as moved:
            offloaded.encode([" a  dog", "the cat"])
        assert moved.copied_bytes == 0
        with Copies(offloaded) as moved:
            offloaded.encode(["the cat", "a bird"])
        assert moved.copied_bytes == moved.moved_bytes

    def test_device_has_one_layer_at_a_time_and_none_after_encoding(self, offloaded):
        with Copies(offloaded) as moved:
            text = offloaded.encode(["the cat"])
        assert len(offloaded._encoder.encoder.block) > 1
        assert moved.most_copies_bytes == moved.layer_bytes
        cached_bytes = text.hidden.nbytes + text.mask.nbytes
        assert moved.alive_bytes <= 2 * cached_bytes  # the result and the cache's

    def test_weights_leave_the_device_after_a_failure(self, offloaded, monkeypatch):
        def run_out_of_memory(*_args: object, **_options: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(offloaded._encoder.encoder.block[1].layer[1], "forward", run_out_of_memory)
        with Copies(offloaded) as moved, pytest.raises(torch.OutOfMemoryError):
            offloaded.encode(["the cat"])
        gc.collect()
        assert (moved.copied_bytes, moved.alive_bytes) == (2 * moved.layer_bytes, 0)
        monkeypatch.undo()
        assert offloaded.encode(["the cat"]).mask.sum() > 0

    def test_results_are_on_the_device_wherever_the_encoder_ran(self, parity_checkpoint):
        encoder = TextEncoder.load(parity_checkpoint, torch.device("meta"), torch.float32, "cpu")
        assert {part.device.type for part in encoder.encode(["the cat"])} == {"meta"}
