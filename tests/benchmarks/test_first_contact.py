"""The run on a GPU keeps what it has measured, whatever ends it; all of it also runs small on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import psutil
import pytest
import torch

from benchmarks import first_contact, stages
from benchmarks.children import running
from benchmarks.first_contact import (
    MEASUREMENTS,
    REPORT,
    Journal,
    Measurement,
    OutOfTime,
    end_now,
    main,
    render,
    run,
    write_report,
)
from benchmarks.gpu_cases import STAGES, Rig, Stage
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

HANGING = """
import sys, time
from pathlib import Path
from benchmarks.children import running
from benchmarks.first_contact import MEASUREMENTS, Journal, hard_stop
folder = Path(sys.argv[1])
with (folder / MEASUREMENTS).open("w") as file, running([sys.executable, "-c", sys.argv[2]], {}) as lines:
    pid = float(next(lines))
    with hard_stop(0.2, folder):
        Journal(file).add("service", "pid", pid)
        time.sleep(600)
"""
STARTS_A_SESSION = """
import subprocess, time
print(subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def rig(tmp_path):
    return Rig.prepare(toy=True, rounds=1, folder=tmp_path)


def measured(stages, rig):
    """Run the stages, and return their measurements as they are on the disk."""
    path = rig.folder / MEASUREMENTS
    with path.open("w") as file:
        run(stages, rig, Journal(file))
    lines = path.read_text().splitlines()
    return [(found["stage"], found["name"], found["value"]) for found in map(json.loads, lines)]


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_number_is_on_the_disk_before_the_next_is_measured(rig):
    on_disk = []

    def measure(_rig):
        for number in range(3):
            yield "number", number
            on_disk.append(len((rig.folder / MEASUREMENTS).read_text().splitlines()))

    measured([Stage("stage", 60, measure)], rig)
    assert on_disk == [1, 2, 3]


def test_failed_stage_is_recorded_and_the_next_one_runs(rig):
    def fail(_rig):
        yield "before", 1.0
        raise ValueError("no such kernel")

    found = measured([Stage("first", 60, fail), Stage("second", 60, lambda _: iter([("after", 2.0)]))], rig)
    assert found == [
        ("first", "before", 1.0),
        ("first", "error", "ValueError: no such kernel"),
        ("second", "after", 2.0),
    ]
    assert write_report(rig.folder) == 1


def test_stage_that_takes_too_long_is_given_up(rig):
    def hang(_rig):
        yield "before", 1.0
        while True:
            time.sleep(0.01)

    found = measured([Stage("slow", 0.3, hang), Stage("next", 60, lambda _: iter([("after", 2.0)]))], rig)
    assert found[1] == ("slow", "error", "OutOfTime: took longer than 0.3 s")
    assert found[2] == ("next", "after", 2.0)


def test_time_limit_within_a_compilation_ends_the_stage(rig, monkeypatch):
    is_hanging = True

    def compile_forever(graph, _inputs):
        while is_hanging:
            time.sleep(0.001)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compile_forever))
    forward = stages.forward(rig.dits.compiled, rig.scale, rig.scale.base, 1)

    def measure(rig):
        yield from rig.timed({"compiled": forward})

    assert measured([Stage("slow", 0.3, measure)], rig) == [
        ("slow", "error", "OutOfTime: took longer than 0.3 s")
    ]
    is_hanging = False
    names = [name for _, name, _ in measured([Stage("next", 300, measure)], rig)]
    assert names == ["compiled: first call, s", "compiled: s"]


def test_time_limit_is_raised_again_where_the_first_was_discarded(rig, monkeypatch):
    monkeypatch.setattr(first_contact, "AGAIN_AFTER_S", 0.05)

    def discard(_rig):
        yield "before", 1.0
        with suppress(BaseException):
            hang()
        hang()

    def hang():
        while True:
            time.sleep(0.01)

    found = measured([Stage("slow", 0.3, discard)], rig)
    assert found[-1] == ("slow", "error", "OutOfTime: took longer than 0.3 s")


def test_number_says_which_parts_were_not_compiled(rig, monkeypatch):
    def fail(graph, _inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    forward = stages.forward(rig.dits.compiled, rig.scale, rig.scale.base, 1)
    parts = ("after_attentions", "before_attention", "between_attentions")
    name = "compiled" + "".join(f", {part} NOT compiled" for part in parts)
    assert [found for found, _ in rig.timed({"compiled": forward})] == [
        f"{name}: first call, s",
        f"{name}: s",
    ]


def test_hanging_run_ends_with_a_report_and_with_all_that_it_has_started(tmp_path):
    command = [sys.executable, "-c", HANGING, str(tmp_path), STARTS_A_SESSION]
    assert subprocess.run(command, check=False).returncode == 1
    assert "| pid |" in (tmp_path / REPORT).read_text()
    pid = int(json.loads((tmp_path / MEASUREMENTS).read_text())["value"])
    wait_until(lambda: not is_running(pid))


def test_run_ends_even_if_no_report_can_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(first_contact, "kill_descendants", lambda: None)
    with pytest.raises(SystemExit):
        end_now(0, tmp_path / "has no measurements")


def test_program_is_killed_with_all_that_it_has_started_when_its_stage_ends():
    pids = []

    def run_until_time_is_up():
        with running([sys.executable, "-c", STARTS_A_SESSION], {}) as lines:
            pids.append(int(next(lines)))
            raise OutOfTime

    with pytest.raises(OutOfTime):
        run_until_time_is_up()
    wait_until(lambda: not is_running(*pids))


def test_program_that_fails_is_an_error():
    with pytest.raises(subprocess.CalledProcessError), running(["false"], {}) as lines:
        assert list(lines) == []


def test_report_is_made_from_a_journal_that_was_cut(tmp_path):
    line = json.dumps({"stage": "s", "name": "n", "value": 1.5, "at_s": 0.1})
    (tmp_path / MEASUREMENTS).write_text(f"{line}\n{line[:-9]}")
    assert main(["--out", str(tmp_path), "--report"]) == 0
    assert "| n | 1.5 | 1 |" in (tmp_path / REPORT).read_text()


def test_report_gives_medians_and_shares_of_the_ceiling():
    found = [
        Measurement("ceilings", "bf16 TFLOP/s", 800.0, 0),
        *(Measurement("480p", "compiled: TFLOP/s", value, 0) for value in (100.0, 600.0, 640.0)),
    ]
    assert "| compiled: TFLOP/s | 600 (75 % of the ceiling) | 3 |" in render(found)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.name in {"versions", "kernels"}])
def test_quick_stage_runs_on_a_cpu(stage, rig):
    assert all(name != "error" for _, name, _ in measured([stage], rig))


@pytest.mark.soak
def test_whole_run_works_small_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.first_contact", "--toy", "--rounds", "1"]
    options = ["--out", str(tmp_path), "--limit", "1800"]
    subprocess.run([*command, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    report = (tmp_path / REPORT).read_text()
    assert all(f"## {stage.name}" in report for stage in STAGES)
