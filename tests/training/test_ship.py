"""What is shipped is what was trained, in half the bytes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.ship import PARTS, ship


@pytest.fixture
def checkpoint(tmp_path):
    """A file of weights and a document in every folder."""
    for part in PARTS[:-1]:
        (tmp_path / "made" / part).mkdir(parents=True)
        (tmp_path / "made" / part / "config.json").write_text("{}")
        save_file({"x": torch.linspace(-30, 30, 9)}, tmp_path / "made" / part / "x.safetensors")
    (tmp_path / "made" / "limits.json").write_text("{}")
    (tmp_path / "made" / "notes.txt").write_text("not for everybody")
    return tmp_path / "made"


def test_weights_are_the_same_in_half_precision(checkpoint, tmp_path):
    ship(checkpoint, tmp_path / "shipped")
    shipped = load_file(tmp_path / "shipped" / "dit" / "x.safetensors")["x"]
    assert shipped.dtype == torch.float16
    assert torch.allclose(shipped.float(), torch.linspace(-30, 30, 9), rtol=1e-3)


def test_everything_that_is_loaded_is_there_and_nothing_else(checkpoint, tmp_path):
    ship(checkpoint, tmp_path / "shipped")
    assert {path.name for path in (tmp_path / "shipped").iterdir()} == set(PARTS)
    assert (tmp_path / "shipped" / "tokenizer" / "config.json").read_text() == "{}"


def test_a_missing_part_is_named(checkpoint, tmp_path):
    (checkpoint / "limits.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"limits\.json"):
        ship(checkpoint, tmp_path / "shipped")


def test_a_weight_that_is_no_number_is_not_shipped(checkpoint, tmp_path):
    save_file({"x": torch.tensor([1e6])}, checkpoint / "dit" / "x.safetensors")
    with pytest.raises(AssertionError):
        ship(checkpoint, tmp_path / "shipped")
