"""The capability that is printed without a GPU is the one that a group publishes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.capability import read_capability
from model.parallel.mesh import SINGLE, ContextParallel
from model.tiny import write_tiny
from worker.rank.capability import main
from worker.rank.model_engine import load_engine
from worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tiny(folder)
    return folder


def test_printed_capability_is_the_one_that_a_group_publishes(checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LONGCAT_DEVICE", "cpu")
    monkeypatch.setenv("LONGCAT_MODEL_ID", "canary")
    assert main([str(checkpoint)]) == 0
    setup = WorkerSettings(checkpoint=checkpoint).rank_setup(tmp_path / "socket")
    published = read_capability(load_engine(setup, SINGLE).capability.model_dump_json())
    assert read_capability(capsys.readouterr().out) == published


def test_operators_limit_on_memory_is_published(checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LONGCAT_DEVICE", "cpu")
    monkeypatch.setenv("LONGCAT_GPU_MEMORY_GIB", "1.5")
    assert main([str(checkpoint)]) == 0
    printed = read_capability(capsys.readouterr().out)
    setup = WorkerSettings(checkpoint=checkpoint).rank_setup(tmp_path / "socket")
    assert load_engine(setup, SINGLE).capability.memory == printed.memory
    assert printed.memory is not None
    assert printed.memory.available_bytes == 3 << 29
    assert printed.memory.setup.element_bytes == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("limit_gib", [0, None])
def test_engine_keeps_merged_weights_in_the_memory_that_it_may_use(
    checkpoint, monkeypatch, tmp_path, limit_gib, stream
):
    monkeypatch.setenv("LONGCAT_DEVICE", "cpu")
    descriptor = os.memfd_create("test")
    update = {
        "weight_memory": Path(f"/proc/self/fd/{descriptor}"),
        "lora_memory_gib": limit_gib,
        "stream_weights": stream,
    }
    setup = WorkerSettings(checkpoint=checkpoint).rank_setup(tmp_path / "socket").model_copy(update=update)
    load_engine(setup, SINGLE)
    assert (os.fstat(descriptor).st_size > 0) == (limit_gib is None)
    os.close(descriptor)


def test_memory_of_a_world_is_that_of_all_its_ranks_together(checkpoint, monkeypatch, tmp_path, capsys):
    for name, value in {
        "DEVICE": "cpu",
        "GPU_MEMORY_GIB": "1.5",
        "RANKS": "4",
        "CONTEXT_PARALLEL": "auto",
    }.items():
        monkeypatch.setenv(f"LONGCAT_{name}", value)
    assert main([str(checkpoint)]) == 0
    printed = read_capability(capsys.readouterr().out)
    setup = WorkerSettings(checkpoint=checkpoint).rank_setup(tmp_path / "socket")
    world = ContextParallel(wider=(ContextParallel(size=2), ContextParallel(size=4)))
    assert read_capability(load_engine(setup, world).capability.model_dump_json()) == printed
    assert printed.memory is not None
    assert (printed.memory.setup.ranks, printed.context_parallel) == (4, 1)


@pytest.mark.parametrize("asked_for", ["device", "offload", "cpu"])
def test_placement_of_the_text_encoder_is_published(checkpoint, monkeypatch, tmp_path, capsys, asked_for):
    monkeypatch.setenv("LONGCAT_DEVICE", "cpu")
    monkeypatch.setenv("LONGCAT_GPU_MEMORY_GIB", "1.5")
    monkeypatch.setenv("LONGCAT_TEXT_ENCODER", asked_for)
    assert main([str(checkpoint)]) == 0
    printed = read_capability(capsys.readouterr().out)
    setup = WorkerSettings(checkpoint=checkpoint).rank_setup(tmp_path / "socket")
    assert load_engine(setup, SINGLE).capability.memory == printed.memory
    assert printed.memory is not None
    assert printed.memory.setup.text_encoder == asked_for


def test_memory_of_gpus_that_are_not_here_can_be_given(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("LONGCAT_QUANTIZE", "int8")
    assert main([str(checkpoint), "--gpu-memory-gib", "24"]) == 0
    memory = read_capability(capsys.readouterr().out).memory
    assert memory is not None
    assert (memory.available_bytes, memory.setup.quantize) == (22 << 30, "int8")


def test_sharded_weights_are_published(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("LONGCAT_SHARD_WEIGHTS", "on")
    monkeypatch.setenv("LONGCAT_RANKS", "2")
    assert main([str(checkpoint), "--gpu-memory-gib", "24"]) == 0
    memory = read_capability(capsys.readouterr().out).memory
    assert memory is not None
    assert (memory.setup.ranks, memory.setup.shard_weights, memory.sizes.blocks > 0) == (2, True, True)


def test_checkpoint_that_cannot_be_read_is_reported(checkpoint, tmp_path, capsys):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "bad.safetensors").write_bytes(b"no tensors")
    assert main([str(tmp_path)]) == 2
    assert "bad.safetensors" in capsys.readouterr().err
