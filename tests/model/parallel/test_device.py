"""The device is chosen by what is wanted and by what the machine has."""

from __future__ import annotations

import os

import pytest
import torch

from model.parallel import device
from model.parallel.device import (
    LARGEST_ON_CPU_BYTES,
    choose_device,
    configure_allocator,
    gpu_problem,
    prioritise_exchanges,
)
from model.spec.errors import ModelError


@pytest.fixture
def large_checkpoint(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(LARGEST_ON_CPU_BYTES + 1)  # sparse: it takes no space
    return tmp_path


@pytest.fixture
def problem(request, monkeypatch):
    monkeypatch.setattr(device, "gpu_problem", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("wanted", "problem", "chosen"),
    [("auto", None, "cuda"), ("auto", "no driver", "cpu"), ("cpu", None, "cpu"), ("cuda", None, "cuda")],
    indirect=["problem"],
)
def test_small_checkpoint_runs_on_the_gpu_if_there_is_one(wanted, problem, chosen, tmp_path):
    assert choose_device(wanted, tmp_path) == chosen


@pytest.mark.parametrize("problem", ["no driver"], indirect=True)
def test_large_checkpoint_runs_on_the_cpu_only_if_asked_for(problem, large_checkpoint):
    with pytest.raises(ModelError, match=r"no GPU can be used: no driver.*too large"):
        choose_device("auto", large_checkpoint)
    assert choose_device("cpu", large_checkpoint) == "cpu"


@pytest.mark.parametrize("problem", ["no driver"], indirect=True)
def test_gpu_that_was_asked_for_must_be_there(problem, tmp_path):
    with pytest.raises(ModelError, match="no GPU can be used: no driver"):
        choose_device("cuda", tmp_path)


def test_problem_is_named_by_the_driver(monkeypatch):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    assert gpu_problem() == "The NVIDIA driver on your system is too old"


@pytest.mark.parametrize("configured", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_allocator_grows_its_segments_unless_the_environment_configures_it(monkeypatch, configured):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "removed after the test")
        monkeypatch.delenv(name)
    if configured:
        monkeypatch.setenv(configured, "max_split_size_mb:512")
    configure_allocator()
    found = {name: value for name, value in os.environ.items() if "ALLOC_CONF" in name}
    expected = {configured: "max_split_size_mb:512"} if configured else {}
    assert found == (expected or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})


def test_problem_of_a_torch_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpu_problem() == "this PyTorch was built without CUDA"


def test_hidden_gpus_are_a_problem(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "CUDA_VISIBLE_DEVICES" in str(gpu_problem())


@pytest.mark.parametrize("configured", [None, "0"])
def test_exchanges_have_a_high_priority_unless_the_operator_decides(monkeypatch, configured):
    monkeypatch.setenv("TORCH_NCCL_HIGH_PRIORITY", "restored after the test")
    monkeypatch.delenv("TORCH_NCCL_HIGH_PRIORITY")
    if configured:
        monkeypatch.setenv("TORCH_NCCL_HIGH_PRIORITY", configured)
    prioritise_exchanges()
    assert os.environ["TORCH_NCCL_HIGH_PRIORITY"] == (configured or "1")
