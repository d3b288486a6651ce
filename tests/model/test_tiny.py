"""The small random checkpoint: whole, deterministic, and not dull."""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file

from model.spec.limits import load_limits
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.tiny import main, write_tiny


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_writes_the_same_files(tmp_path):
    write_tiny(tmp_path / "one", seed=1)
    write_tiny(tmp_path / "again", seed=1)
    write_tiny(tmp_path / "other", seed=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_command_writes_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["model.tiny", str(tmp_path / "one"), "--seed", "1"])
    main()
    write_tiny(tmp_path / "same", seed=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "same")


def test_writing_it_leaves_the_random_numbers_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    write_tiny(tmp_path / "one")
    assert torch.equal(torch.rand(1), expected)


def test_tiny_checkpoint_has_the_released_layout(tiny_checkpoint):
    parts = {path.relative_to(tiny_checkpoint).parts[0] for path in tiny_checkpoint.rglob("*.*")}
    assert {"tokenizer", "text_encoder", "vae", "dit", "scheduler", "lora", "limits.json"} <= parts
    index = json.loads(
        (tiny_checkpoint / "dit" / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert len(set(index["weight_map"].values())) == 2


def test_its_limits_offer_every_task(tiny_checkpoint):
    limits = load_limits(tiny_checkpoint)
    assert resolve(GenerationParams(), Inputs(), limits).output_size == (64, 96)
    refined = resolve(GenerationParams(refine=True), Inputs(num_prompts=3), limits)
    assert refined.output_size == (128, 192)
    assert refined.output_fps == 30


def test_its_loras_change_something_everywhere(tiny_checkpoint):
    for name in ("cfg_step_lora", "refinement_lora"):
        ups = {
            k: x
            for k, x in load_file(tiny_checkpoint / "lora" / f"{name}.safetensors").items()
            if "lora_up" in k
        }
        assert ups
        assert all(x.abs().max() > 0 for x in ups.values())
