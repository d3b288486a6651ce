"""The capability that is printed without a GPU is the one that a group publishes."""

from __future__ import annotations

import pytest

from jobs.capability import read_capability
from model.parallel.mesh import SINGLE
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


def test_checkpoint_that_cannot_be_read_is_reported(checkpoint, tmp_path, capsys):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "bad.safetensors").write_bytes(b"no tensors")
    assert main([str(tmp_path)]) == 2
    assert "bad.safetensors" in capsys.readouterr().err
