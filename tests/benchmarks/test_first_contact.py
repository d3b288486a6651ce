"""The run on a GPU keeps what it has measured, whatever ends it; all of it also runs small on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import psutil
import pytest
import torch
import torch.distributed as dist
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

from benchmarks import first_contact, first_step, gpu_cases, several_gpus, stages
from benchmarks.children import running
from benchmarks.first_contact import (
    MEASUREMENTS,
    REPORT,
    TOTAL_LIMIT_S,
    Journal,
    Measurement,
    OutOfTime,
    end_now,
    main,
    render,
    run,
    write_report,
)
from benchmarks.formulas import num_tokens
from benchmarks.gpu_cases import NOT_RUN_ON_CPU, STAGES, Rig, Stage
from benchmarks.stages import FULL, TOY
from model.parallel.mesh import ContextParallel
from model.transformer.block import Block
from model.transformer.config import QUANTISED
from model.transformer.int8 import Int8Linear
from model.transformer.quantise import LAYERS
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
    Journal(file).add("service", "pid", pid)
    with hard_stop(0.2, folder):
        time.sleep(600)
"""
STARTS_A_SESSION = """
import subprocess, time
print(subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)
time.sleep(600)
"""
LINES = {
    "stack": ["Ready at http://127.0.0.1:1 after 9 s", "/out/prompt.mp4: 17 frames of 96×64"],
    "benchmarks.first_step": ['{"forward_s": 0.5, "not_compiled": []}'],
    "torch.distributed.run": ['["sharded weights: s", 0.25]'],
}
"""What programs write that stages start, by the program."""


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
    assert found[-2:] == [
        ("slow", "error", "OutOfTime: took longer than 0.3 s"),
        ("next", "after", 2.0),
    ]


def test_time_limit_within_a_compilation_ends_the_stage(rig):
    def compile_too_long(_graph, _inputs):
        signal.raise_signal(signal.SIGALRM)

    def measure(_rig):
        with suppress(TorchDynamoException):  # after which the plain code would run
            torch.compile(lambda x: x + 1, backend=compile_too_long)(torch.ones(1))
        yield "plain code", 1.0

    assert measured([Stage("slow", 60, measure)], rig) == [
        ("slow", "error", "OutOfTime: took longer than 60 s")
    ]


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
    def no_compiler(_part, **_):
        def fail(*_):
            raise BackendCompilerFailed(no_compiler, RuntimeError("no compiler"), None)

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    forward = stages.forward(rig.transformers(rig.scale).compiled, rig.scale, rig.scale.base, 1)
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


def test_times_of_fewer_blocks_are_scaled_in_the_report():
    found = [
        Measurement("refine", "blocks", "12 of 48", 0),
        Measurement("refine", "compiled: first call, s", 30.0, 0),
        Measurement("refine", "compiled: s", 2.5, 0),
        Measurement("480p", "compiled: s", 4.0, 0),
    ]
    report = render(found)
    assert "| compiled: first call, s | 30 | 1 |" in report
    assert "| compiled: s | 2.5 (10 with all blocks, calculated) | 1 |" in report
    assert "| compiled: s | 4 | 1 |" in report


def test_limits_of_all_stages_fit_the_limit_of_the_run():
    assert sum(stage.limit_s for stage in STAGES) <= TOTAL_LIMIT_S


@pytest.mark.parametrize(
    ("memory_gb", "quantised", "blocks"), [(80, LAYERS, 48), (24, LAYERS, 17), (24, (), 31)]
)
def test_small_memory_gets_as_many_blocks_as_fit(rig, memory_gb, quantised, blocks):
    small = replace(rig, scale=FULL, memory_bytes=memory_gb * 10**9)
    scale = small.fitted(FULL.base, quantised=quantised)
    assert small.blocks(scale) == ("blocks", f"{blocks} of 48")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_stage_runs_small_on_a_cpu_without_a_compiler(stage, rig, monkeypatch):
    """Programs that stages start are left out. The whole run starts them."""

    @contextmanager
    def written(command, _environment):
        yield iter(next(lines for program, lines in LINES.items() if program in command))

    monkeypatch.setattr(gpu_cases, "running", written)
    monkeypatch.setattr(torch, "compile", lambda part, **_: part)
    found = {name: value for _, name, value in measured([replace(stage, limit_s=1500)], rig)}
    assert "error" not in found
    assert found
    assert not any("NOT compiled" in name for name in found)
    assert all(value == "True" for name, value in found.items() if "same" in name or "bits again" in name)


def test_kernels_that_a_cpu_lacks_are_not_reported_as_exact(rig):
    found = {
        name: value for name, value in gpu_cases.kernels(rig) if "parts" not in name and "int8" not in name
    }
    assert len(found) == 4
    assert set(found.values()) == {NOT_RUN_ON_CPU}


def test_all_products_with_weights_in_int8_are_timed_for_one_gpu_and_for_one_of_eight(rig, monkeypatch):
    multiplied = []
    monkeypatch.setattr(
        Int8Linear, "forward", lambda layer, x: multiplied.append((len(x), layer.weight.shape))
    )
    taken = {name for name, _ in gpu_cases.kernels(rig) if name.startswith("int8 products of a block")}
    tokens = num_tokens(TOY.dit, TOY.base)
    assert taken == {
        f"int8 products of a block, {number} tokens, with copies of weights: {kind}"
        for number in (tokens, tokens // 8)
        for kind in ("s", "first call, s")
    }
    calls_of_each = 1 + rig.rounds
    block = Block(TOY.dit, TOY.dtype)
    shapes = [block.get_submodule(name).get_parameter("weight").shape for name in QUANTISED]
    assert multiplied == [
        (number, shape) for number in (tokens, tokens // 8) for _ in range(calls_of_each) for shape in shapes
    ]


def test_first_step_of_a_process_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda part, **_: part)
    first_step.main("cpu")
    found = json.loads(capsys.readouterr().out)
    assert found["not_compiled"] == []
    assert found["forward_s"] > 0


def test_forwards_on_several_gpus_are_the_same_with_sharded_weights_and_in_slices(single_rank_group):
    parallel = ContextParallel(weights_group=single_rank_group)
    found = dict(several_gpus.measure(TOY, parallel, rounds=1))
    times = {name for name in found if name.endswith(": s")}
    assert {"weights on each GPU: s", "sharded weights: s"} < times
    assert {"refinement, attention while slices are exchanged: s"} < times
    assert {name: value for name, value in found.items() if "same" in name} == {
        "480p, the same in slices": "True",
        "refinement, the same in slices": "True",
        "the same as with all weights on each GPU": "True",
    }


@pytest.fixture
def single_rank_group():
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.soak
def test_whole_run_works_small_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.first_contact", "--toy", "--rounds", "1"]
    options = ["--out", str(tmp_path), "--limit", "3600"]
    subprocess.run([*command, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    report = (tmp_path / REPORT).read_text()
    assert all(f"## {stage.name}" in report for stage in STAGES)
    assert "NOT compiled" not in report
