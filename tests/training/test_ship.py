"""The shipped checkpoint is the trained one with fp16 weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.ship import PARTS, ship


@pytest.fixture
def checkpoint(tmp_path):
    """Make a checkpoint with one file of weights and one document in each folder."""
    for part in PARTS[:-1]:
        (tmp_path / "made" / part).mkdir(parents=True)
        (tmp_path / "made" / part / "config.json").write_text("{}")
        save_file({"x": torch.linspace(-30, 30, 9)}, tmp_path / "made" / part / "x.safetensors")
    (tmp_path / "made" / "limits.json").write_text("{}")
    (tmp_path / "made" / "notes.txt").write_text("private")
    return tmp_path / "made"


def test_weights_are_stored_in_fp16(checkpoint, tmp_path):
    ship(checkpoint, tmp_path / "shipped")
    shipped = load_file(tmp_path / "shipped" / "dit" / "x.safetensors")["x"]
    assert shipped.dtype == torch.float16
    assert torch.allclose(shipped.float(), torch.linspace(-30, 30, 9), rtol=1e-3)


def test_only_files_that_a_server_loads_are_copied(checkpoint, tmp_path):
    ship(checkpoint, tmp_path / "shipped")
    assert {path.name for path in (tmp_path / "shipped").iterdir()} == set(PARTS)
    assert (tmp_path / "shipped" / "tokenizer" / "config.json").read_text() == "{}"


def test_missing_part_is_named_in_error(checkpoint, tmp_path):
    (checkpoint / "limits.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"limits\.json"):
        ship(checkpoint, tmp_path / "shipped")


def test_weight_that_overflows_fp16_is_refused(checkpoint, tmp_path):
    save_file({"x": torch.tensor([1e6])}, checkpoint / "dit" / "x.safetensors")
    with pytest.raises(AssertionError):
        ship(checkpoint, tmp_path / "shipped")
