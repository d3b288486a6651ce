"""Two checkpoints with different weights have different fingerprints."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.io.fingerprint import fingerprints
from model.spec.errors import CheckpointError
from model.tiny import write_tiny


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def shards(checkpoint: Path) -> list[Path]:
    return sorted((checkpoint / "dit").glob("*.safetensors"))


def differing(first: Path, second: Path) -> set[str]:
    before, after = fingerprints(first), fingerprints(second)
    return {part for part in before.keys() | after.keys() if before.get(part) != after.get(part)}


def test_copy_has_the_same_fingerprints(checkpoint, tiny_checkpoint):
    assert differing(tiny_checkpoint, checkpoint) == set()
    parts = {"transformer", "text_encoder", "vae", "scheduler", "cfg_step_lora", "refinement_lora"}
    assert fingerprints(checkpoint).keys() == parts


def test_other_weights_have_other_fingerprints(tmp_path, tiny_checkpoint):
    write_tiny(tmp_path / "other", seed=1)
    parts = {"transformer", "text_encoder", "vae", "cfg_step_lora", "refinement_lora"}
    assert differing(tiny_checkpoint, tmp_path / "other") == parts


@pytest.mark.parametrize("index", [0, -1])
def test_change_of_every_tensor_by_one_value_is_noticed(checkpoint, tiny_checkpoint, index):
    for path in shards(checkpoint):
        tensors = load_file(path)
        for name in tensors:
            changed = tensors[name].clone()
            changed.view(-1)[index] += 1
            save_file({**tensors, name: changed}, path)
            assert differing(tiny_checkpoint, checkpoint) == {"transformer"}
        save_file(tensors, path)


def test_division_into_files_does_not_matter(checkpoint, tiny_checkpoint):
    first, second = shards(checkpoint)
    tensors = load_file(first) | load_file(second)
    second.unlink()
    save_file(tensors, first)
    assert differing(tiny_checkpoint, checkpoint) == set()


def test_configuration_counts(checkpoint, tiny_checkpoint):
    path = checkpoint / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("12.0", "7.0"))
    assert differing(tiny_checkpoint, checkpoint) == {"scheduler"}


def test_lora_has_a_fingerprint_of_its_own(checkpoint, tiny_checkpoint):
    (checkpoint / "lora" / "cfg_step_lora.safetensors").unlink()
    assert differing(tiny_checkpoint, checkpoint) == {"cfg_step_lora"}


def test_file_that_cannot_be_read_is_named(checkpoint):
    path = shards(checkpoint)[0]
    path.write_bytes(b"\x10\0\0\0\0\0\0\0" + b"x" * 16)
    with pytest.raises(CheckpointError, match=path.name):
        fingerprints(checkpoint)


@pytest.mark.parametrize(
    "header", [b"[]", b"null", b'{"a": 3}', b'{"a": {"data_offsets": ["0", 1]}}', b"[" * 100_000]
)
def test_file_whose_header_is_not_one_of_tensors_is_named(checkpoint, header):
    path = checkpoint / "lora" / "cfg_step_lora.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=path.name):
        fingerprints(checkpoint)


def test_middle_of_a_large_tensor_is_sampled(tmp_path, tiny_checkpoint):
    both = [tmp_path / name for name in ("a", "b")]
    for folder, middle in zip(both, (0.0, 1.0), strict=True):
        shutil.copytree(tiny_checkpoint, folder)
        large = torch.zeros(1 << 16)
        large[(1 << 15) + 5] = middle
        save_file({"large": large}, folder / "vae" / "more.safetensors")
    assert differing(*both) == {"vae"}
