"""A run that is stopped goes on as if it had not been."""

import json

import pytest
import torch

from training.stage import Run, stage


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


def test_a_run_that_was_stopped_ends_where_an_unbroken_one_ends(tmp_path):
    unbroken = train(Run(tmp_path / "a", parts()), 8)
    train(Run(tmp_path / "b", parts()), 3)
    resumed = train(Run(tmp_path / "b", parts()), 8)
    assert torch.equal(unbroken, resumed)


def test_a_new_run_begins_at_step_zero(tmp_path):
    assert Run(tmp_path, parts()).step == 0


def test_the_log_tells_step_and_seconds_of_all_sittings(tmp_path):
    run = Run(tmp_path, parts())
    run.log(loss=1.0)
    train(run, 2)
    again = Run(tmp_path, parts())
    again.log(loss=0.5)
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 2)
    assert second["seconds"] >= first["seconds"]
    assert second["loss"] == 0.5


def test_nothing_half_written_is_left_behind(tmp_path):
    train(Run(tmp_path, parts()), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt"]


def test_a_stage_keeps_its_state_under_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sys.argv", ["x", str(tmp_path), str(tmp_path / "made"), "--steps", "7", "--threads", "1"]
    )
    told = stage("text", "what it does", 100)
    assert told.folder == tmp_path / "text"
    assert told.checkpoint == tmp_path / "made"
    assert told.steps == 7
    assert told.device.type == "cpu"


def test_a_stage_needs_a_run_and_a_checkpoint(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit):
        stage("text", "what it does", 100)
    assert "checkpoint" in capsys.readouterr().err
