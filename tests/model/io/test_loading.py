"""Loading reports its cost, reads shards in parallel, and holds no tensor twice."""

from __future__ import annotations

import threading

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.io import checkpoint
from model.io.checkpoint import Weights, load_module
from model.io.loading import Cost, measured
from model.spec.errors import CheckpointError

CPU = torch.device("cpu")
STEM = "weights"


def test_the_cost_of_loading_is_in_seconds_and_bytes():
    made, cost = measured(lambda: torch.ones(1 << 20), CPU)
    assert made.sum() == 1 << 20
    assert cost.duration_s > 0
    assert cost.peak_bytes > made.nbytes


def test_cost_is_shown_in_one_line():
    assert str(Cost(4.25, 27_160_000_000)) == "in 4.2 s, with 27.16 GB of memory at most"


@pytest.fixture
def shards(tmp_path):
    """Three layers in a file each."""
    for i in range(3):
        tensors = {f"{i}.weight": torch.full((4, 4), float(i)), f"{i}.bias": torch.zeros(4)}
        save_file(tensors, tmp_path / f"{STEM}-{i}.safetensors")
    names = [f"{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    index = {"weight_map": {name: f"{STEM}-{name[0]}.safetensors" for name in names}}
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(str(index).replace("'", '"'))
    return tmp_path


def layers() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4, dtype=torch.bfloat16) for _ in range(3)))


def test_shards_are_read_side_by_side(shards, monkeypatch):
    """Each reader waits until all three are at work; one after another they would wait for ever."""
    together, read = threading.Barrier(3, timeout=60), checkpoint._read

    def at_once(path, wanted, device, convert):
        together.wait()
        return read(path, wanted, device, convert)

    monkeypatch.setattr(checkpoint, "_read", at_once)
    module = load_module(layers, Weights(shards, STEM), CPU)
    assert [float(layer.get_parameter("weight")[0, 0]) for layer in module] == [0.0, 1.0, 2.0]
    assert all(parameter.dtype == torch.bfloat16 for parameter in module.parameters())


def test_wrong_shape_in_one_of_several_shards_is_named(shards):
    save_file({"1.weight": torch.zeros(4, 5), "1.bias": torch.zeros(4)}, shards / f"{STEM}-1.safetensors")
    with pytest.raises(CheckpointError, match=r"weights-1.safetensors.*1.weight has shape \[4, 5\]"):
        load_module(layers, Weights(shards, STEM), CPU)


def test_each_file_is_opened_once_to_read_it(shards, monkeypatch):
    open_safetensors, seen = checkpoint.open_safetensors, []

    def noted(path, device="cpu"):
        seen.append(path.name)
        return open_safetensors(path, device)

    weights = Weights(shards, STEM)
    monkeypatch.setattr(checkpoint, "open_safetensors", noted)
    load_module(layers, weights, CPU)
    assert sorted(seen) == [f"{STEM}-{i}.safetensors" for i in range(3)]
