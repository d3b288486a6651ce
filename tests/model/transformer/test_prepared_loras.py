"""LoRAs that are merged once and kept in shared memory: switches read no file, and give the same bits."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.spec.errors import CheckpointError, DeviceError
from model.transformer import lora, prepared_weights
from model.transformer.lora import LoraMerger
from model.transformer.prepared_weights import PreparedWeights
from tests.model.transformer.test_lora import Case, same

NAMES = (None, "distilled", "refinement", "one")


@pytest.fixture
def case(tmp_path, weight_memory) -> Case:
    case = Case(tmp_path)
    case.merged.prepare(weight_memory)
    return case


def test_each_base_weight_is_read_once_to_prepare_all_loras(case):
    named = {module for file in case.files.values() for module in file.modules}
    assert sorted(case.base.reads) == sorted(f"{module}.weight" for module in named)


def test_switches_read_neither_the_checkpoint_nor_the_loras(case):
    case.base.reads.clear()
    for path in (*case.paths.values(), case.folder / "dit" / "diffusion_pytorch_model.safetensors"):
        path.unlink()
    before = case.weights()
    for name in ("distilled", "refinement", "one", "distilled", None):
        case.merged.switch(name)
    assert case.base.reads == []
    assert same(case.weights(), before)


def test_base_is_the_same_after_1000_switches_and_each_lora_equals_a_fresh_merge(tmp_path, weight_memory):
    case = Case(tmp_path, torch.bfloat16)
    fresh = {}
    for name in NAMES:
        case.merged.switch(name)
        fresh[name] = case.weights()
    case.merged.switch(None)
    case.merged.prepare(weight_memory)
    draws = random.Random(0)
    for name in (*draws.choices(NAMES, k=996), *NAMES[1:], None):
        case.merged.switch(name)
        if draws.random() < 0.05 or name is None:
            assert same(case.weights(), fresh[name]), name
    assert same(case.weights(), case.load(torch.bfloat16).state_dict())


def test_second_process_takes_what_the_first_has_prepared(tmp_path, weight_memory):
    first, second = Case(tmp_path), Case(tmp_path)
    first.merged.prepare(weight_memory)
    second.merged.prepare(weight_memory)
    assert second.base.reads == []
    first.merged.switch("refinement")
    second.merged.switch("refinement")
    assert same(first.weights(), second.weights())


def test_memory_of_other_weights_is_not_used(tmp_path, weight_memory, caplog):
    first, second = Case(tmp_path / "first"), Case(tmp_path / "second")
    first.merged.prepare(weight_memory)
    second.merged.prepare(replace(weight_memory, fingerprint="other weights"))
    second.merged.switch("one")
    assert second.base.reads == ["blocks.1.ffn.w2.weight"]
    assert "weights changed" in caplog.text


def test_nothing_is_kept_that_needs_more_than_the_limit(tmp_path, weight_memory, caplog):
    case = Case(tmp_path)
    case.merged.prepare(replace(weight_memory, max_bytes=1 << 16))
    assert weight_memory.path.stat().st_size == 0
    case.merged.switch("one")
    assert case.base.reads == ["blocks.1.ffn.w2.weight"]
    assert "to keep them takes" in caplog.text


def test_memory_that_cannot_be_opened_is_no_error(tmp_path, weight_memory, caplog):
    case = Case(tmp_path)
    case.merged.prepare(replace(weight_memory, path=tmp_path / "none"))
    case.merged.switch("one")
    assert case.base.reads == ["blocks.1.ffn.w2.weight"]
    assert "No such file" in caplog.text


def test_memory_whose_first_process_ended_before_it_named_the_weights_is_used(tmp_path, weight_memory):
    case = Case(tmp_path)
    with weight_memory.path.open("r+b") as memory:
        memory.truncate(1 << 20)
    case.merged.prepare(weight_memory)
    case.base.reads.clear()
    case.merged.switch("one")
    assert case.base.reads == []


def test_checkpoint_without_loras_needs_no_memory(tmp_path, weight_memory):
    case = Case(tmp_path)
    LoraMerger(case.dit, case.base, {}).prepare(weight_memory)
    assert weight_memory.path.stat().st_size == 0


def test_preparing_can_be_repeated_after_a_failure(tmp_path, weight_memory):
    case = Case(tmp_path)
    hidden = case.paths["distilled"].rename(case.folder / "elsewhere")
    with pytest.raises(CheckpointError, match="distilled"):
        case.merged.prepare(weight_memory)
    hidden.rename(case.paths["distilled"])
    case.merged.prepare(weight_memory)
    case.base.reads.clear()
    case.merged.switch("distilled")
    assert case.base.reads == []


def prepared(path: Path) -> PreparedWeights:
    """Memory for two modules."""
    tensors = {None: {"weight": torch.empty(3, 5)}, "lora": {"weight": torch.empty(3, 5)}}
    weights = PreparedWeights({"one": tensors, "two": tensors}, "weights")
    assert weights.open(path)
    return weights


# Locks the byte of the first module, as a process does while it prepares that.
PREPARING = """
import fcntl, hashlib, sys, time
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 1, hashlib.sha256().digest_size)
print("locked", flush=True)
time.sleep(1000)
"""


def test_module_of_a_process_that_died_is_prepared_by_another_one_after_all_others(weight_memory):
    weights = prepared(weight_memory.path)
    order: list[str] = []
    has_two = threading.Event()

    def prepare(module: str):
        order.append(module)
        has_two.set()
        return {lora: {"weight": torch.full((3, 5), len(order))} for lora in (None, "lora")}

    with subprocess.Popen(
        [sys.executable, "-c", PREPARING, str(weight_memory.path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        thread = threading.Thread(target=weights.fill, args=[prepare])
        thread.start()
        assert has_two.wait(60)
        other.send_signal(signal.SIGKILL)
        thread.join(60)
    assert order == ["two", "one"]
    assert weights.read("one", "lora")["weight"].tolist() == [[2.0] * 5] * 3


def test_modules_are_prepared_at_the_same_time(weight_memory):
    weights = prepared(weight_memory.path)
    both = threading.Barrier(2)

    def prepare(_: str):
        both.wait(60)
        return {lora: {"weight": torch.ones(3, 5)} for lora in (None, "lora")}

    weights.fill(prepare)
    assert weights.read("two", "lora")["weight"].tolist() == [[1.0] * 5] * 3


def test_process_that_is_stuck_delays_others_by_the_longest_wait_alone(weight_memory, monkeypatch):
    monkeypatch.setattr(prepared_weights, "LONGEST_WAIT_S", 0.01)
    weights = prepared(weight_memory.path)
    variants = {lora: {"weight": torch.ones(3, 5)} for lora in (None, "lora")}
    with subprocess.Popen(
        [sys.executable, "-c", PREPARING, str(weight_memory.path)], stdout=subprocess.PIPE, text=True
    ) as stuck:
        assert stuck.stdout
        assert stuck.stdout.readline() == "locked\n"
        filling = threading.Thread(target=weights.fill, args=[lambda _: variants], daemon=True)
        filling.start()
        filling.join(60)
        has_ended = not filling.is_alive()
        stuck.send_signal(signal.SIGKILL)
    assert has_ended
    assert weights.read("one", None)["weight"].tolist() == [[1.0] * 5] * 3


def test_pages_that_cannot_be_locked_make_switches_slower_and_are_an_error_where_blocks_are_streamed(
    weight_memory, monkeypatch, caplog
):
    locked = []

    def refuse(buffer: torch.Tensor) -> None:
        locked.append(buffer.nbytes)
        raise DeviceError("CUDA cannot lock 1 KiB more of host memory")

    monkeypatch.setattr(lora, "lock_pages", refuse)
    weights = prepared(weight_memory.path)
    with caplog.at_level(logging.WARNING):
        lora._lock_pages(weights, torch.device("cpu"), is_streamed=False)
    assert locked == [weights.size_bytes]
    assert "switches of LoRA take longer: CUDA cannot lock" in caplog.text
    with pytest.raises(DeviceError):  # blocks would not be copied while others compute
        lora._lock_pages(weights, torch.device("cpu"), is_streamed=True)
