"""An interrupted training run resumes where it stopped."""

import json

import pytest
import torch

from training.stage import TrainingRun, parse_options


def parts():
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)
    return {"module": module, "optimiser": torch.optim.Adam(module.parameters(), lr=0.1)}


def train(run, until):
    module, optimiser = run.parts["module"], run.parts["optimiser"]
    while run.step < until:
        optimiser.zero_grad()
        module(torch.full((1, 2), float(run.step))).square().sum().backward()
        optimiser.step()
        run.advance()
    run.save()
    return module.weight.detach().clone()


def test_interrupted_run_ends_with_same_weights(tmp_path):
    uninterrupted = train(TrainingRun(tmp_path / "a", parts()), 8)
    train(TrainingRun(tmp_path / "b", parts()), 3)
    resumed = train(TrainingRun(tmp_path / "b", parts()), 8)
    assert torch.equal(uninterrupted, resumed)


def test_new_run_begins_at_step_zero(tmp_path):
    assert TrainingRun(tmp_path, parts()).step == 0


def test_log_continues_step_and_seconds_after_resuming(tmp_path):
    run = TrainingRun(tmp_path, parts())
    run.log(loss=1.0)
    train(run, 2)
    again = TrainingRun(tmp_path, parts())
    again.log(loss=0.5)
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 2)
    assert second["seconds"] >= first["seconds"]
    assert second["loss"] == 0.5


def test_saving_leaves_no_temporary_file(tmp_path):
    train(TrainingRun(tmp_path, parts()), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt"]


def test_state_folder_has_name_of_stage(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sys.argv", ["x", str(tmp_path), str(tmp_path / "made"), "--steps", "7", "--threads", "1"]
    )
    options = parse_options("text", "what it does", 100)
    assert options.folder == tmp_path / "text"
    assert options.checkpoint == tmp_path / "made"
    assert options.steps == 7
    assert options.device.type == "cpu"


def test_run_and_checkpoint_are_required(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit):
        parse_options("text", "what it does", 100)
    assert "checkpoint" in capsys.readouterr().err
