"""The state of a job is saved and loaded without loss; other files are refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from model.pipeline.state import State
from model.spec.errors import InputError

BEGUN = State.begin(7)
MIDWAY = dataclasses.replace(
    BEGUN,
    segment=2,
    stage="refine",
    step=3,
    latents=torch.randn(1, 16, 4, 2, 3),
    clean=torch.randn(1, 16, 0, 2, 3),
    tail=torch.rand(5, 16, 24, 3),
    refined_tail=torch.rand(10, 32, 48, 3),
)


def same(one: State, other: State) -> bool:
    for field in dataclasses.fields(State):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if not torch.equal(a, b) or a.dtype != b.dtype:
                return False
        elif a != b:
            return False
    return True


@pytest.mark.parametrize("state", [BEGUN, MIDWAY])
def test_saved_state_is_loaded_unchanged(tmp_path, state):
    state.save(tmp_path / "state")
    assert same(State.load(tmp_path / "state"), state)


def test_save_replaces_the_earlier_file_and_leaves_no_other(tmp_path):
    BEGUN.save(tmp_path / "state")
    MIDWAY.save(tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert same(State.load(tmp_path / "state"), MIDWAY)


def test_failed_save_keeps_the_earlier_state(tmp_path, monkeypatch):
    BEGUN.save(tmp_path / "state")

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("model.pipeline.state.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        MIDWAY.save(tmp_path / "state")
    assert same(State.load(tmp_path / "state"), BEGUN)


def test_generator_continues_from_the_saved_state():
    generator = BEGUN.generator()
    first = torch.randn(3, generator=generator)
    later = dataclasses.replace(BEGUN, random=generator.get_state())
    assert torch.equal(first, torch.randn(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(torch.randn(3, generator=later.generator()), torch.randn(3, generator=generator))


@pytest.mark.parametrize("content", [None, b"", b"nothing like it"])
def test_missing_or_foreign_file_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "state").write_bytes(content)
    with pytest.raises(InputError, match="state"):
        State.load(tmp_path / "state")


def test_file_without_metadata_or_with_other_tensors_is_refused(tmp_path):
    save_file({"latents": torch.zeros(1)}, tmp_path / "state")
    with pytest.raises(InputError, match="is not a saved state"):
        State.load(tmp_path / "state")
    save_file(
        {"other": torch.zeros(1)},
        tmp_path / "state",
        metadata={"segment": "0", "stage": "denoise", "step": "0"},
    )
    with pytest.raises(InputError, match="is not a saved state"):
        State.load(tmp_path / "state")
