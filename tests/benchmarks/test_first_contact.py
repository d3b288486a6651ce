"""The run on a GPU keeps what it has measured, whatever ends it; all of it also runs small on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest
import torch
import torch.distributed as dist
from torch._dynamo.exc import BackendCompilerFailed

from benchmarks import first_contact, first_step, gpu_cases, run_stages, several_gpus, stages
from benchmarks.children import running
from benchmarks.first_contact import (
    MEASUREMENTS,
    REPORT,
    TOTAL_LIMIT_S,
    Journal,
    Measurement,
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
from model.transformer.layers import FinalLayer
from model.transformer.quantise import LAYERS
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

STAGES_OF = """
import os, signal, subprocess, sys, time
from multiprocessing.connection import Connection
messages = Connection(int(sys.argv[-1]), readable=False)
stages = iter(["first", "second", "third"])
for lost in sys.argv[1:-1]:
    while lost != "--after" and next(stages) != lost:
        pass
for stage in stages:
    messages.send((stage, LIMITS_S.get(stage, 60)))
    messages.send((stage, "number", 1.0))
    if stage == "second":
        FAULT
messages.send(())
"""
"""A program that runs three stages, of which the second has a fault."""

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
    """Run the stages in this process, and return what they measure."""
    sent: list[tuple[object, ...]] = []
    run_stages.run(stages, rig, sent.append)
    return [message for message in sent if len(message) == 3]


def measured_in_processes(folder, fault, limits_s=None, limit_s=TOTAL_LIMIT_S):
    """Run three stages, the second of which has a fault, and return what is on the disk."""
    program = STAGES_OF.replace("LIMITS_S", repr(limits_s or {})).replace("FAULT", fault)
    path = folder / MEASUREMENTS
    with path.open("w") as file:
        run([sys.executable, "-c", program], Journal(file), limit_s)
    return [
        (found["stage"], found["name"], found["value"])
        for found in map(json.loads, path.read_text().splitlines())
    ]


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_number_is_on_the_disk_before_the_next_is_measured(tmp_path):
    path = tmp_path / MEASUREMENTS
    with path.open("w") as file:
        journal = Journal(file)
        for number in range(3):
            journal.add("stage", "number", number)
            assert len(path.read_text().splitlines()) == number + 1


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


def test_stage_that_breaks_the_device_ends_the_process(rig, monkeypatch):
    def release(_rig):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Rig, "release", release)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measured([Stage("first", 60, lambda _: iter([])), Stage("second", 60, lambda _: iter([]))], rig)


NUMBERS = [("first", "number", 1.0), ("second", "number", 1.0)]
ENDED = "the process ended: exit status"


@pytest.mark.parametrize(
    ("fault", "error"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", f"{ENDED} -11"), ("sys.exit(3)", f"{ENDED} 3")],
)
def test_stage_that_ends_its_process_costs_no_other_stage(tmp_path, fault, error):
    assert measured_in_processes(tmp_path, fault) == [
        *NUMBERS,
        ("second", "error", error),
        ("third", "number", 1.0),
    ]


def test_process_that_does_not_end_by_itself_costs_no_other_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(first_contact, "EXIT_LIMIT_S", 0.1)
    assert measured_in_processes(tmp_path, "messages.close(); time.sleep(600)") == [
        *NUMBERS,
        ("second", "error", f"{ENDED} None"),
        ("third", "number", 1.0),
    ]


def test_stage_that_hangs_costs_no_other_stage(tmp_path):
    assert measured_in_processes(tmp_path, "time.sleep(600)", {"second": 0.1}) == [
        *NUMBERS,
        ("second", "error", "took longer than it may"),
        ("third", "number", 1.0),
    ]


def test_limits_of_stages_shrink_with_that_of_the_run(tmp_path):
    found = measured_in_processes(tmp_path, "time.sleep(600)", {"second": 1e6}, limit_s=TOTAL_LIMIT_S * 1e-2)
    assert found[-1] == ("second", "error", "the whole run took longer than it may")


def test_run_without_a_gpu_ends_at_once_with_an_error(tmp_path):
    with (tmp_path / MEASUREMENTS).open("w") as file:
        run([sys.executable, "-c", "raise RuntimeError('no GPU')"], Journal(file), TOTAL_LIMIT_S)
    assert write_report(tmp_path) == 1
    assert f"| error | {ENDED} 1 | 1 |" in (tmp_path / REPORT).read_text()


def test_stage_that_hangs_is_killed_with_all_that_it_has_started(tmp_path):
    session = ["sleep", "600"]
    fault = (
        f"messages.send((stage, 'pid', subprocess.Popen({session}, start_new_session=True).pid))\n"
        "        time.sleep(600)"
    )
    found = measured_in_processes(tmp_path, fault, {"second": 2})
    (pid,) = [value for _, name, value in found if name == "pid"]
    wait_until(lambda: not is_running(pid))


def test_stages_after_a_lost_one_are_those_that_come_next():
    *_, last_but_one, last = STAGES
    assert run_stages.wanted(None, last_but_one.name) == [last]
    assert run_stages.wanted([last_but_one.name], None) == [last_but_one]
    assert run_stages.wanted([last_but_one.name], last_but_one.name) == []


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


def test_program_is_killed_with_all_that_it_has_started_when_its_stage_ends():
    pids = []

    def run_until_time_is_up():
        with running([sys.executable, "-c", STARTS_A_SESSION], {}) as lines:
            pids.append(int(next(lines)))
            raise TimeoutError

    with pytest.raises(TimeoutError):
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


def test_exact_fp32_is_compared_with_the_kernels_of_cudnn():
    with gpu_cases._exact_fp32():
        assert torch.backends.cudnn.enabled
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("factor", "error"), [(1.0, 0.0), (1.5, 0.5)])
def test_result_of_compiled_code_is_compared_with_that_of_plain_code(rig, monkeypatch, factor, error):
    def scaled(part, **_):
        is_last = part.__func__ is Block.after_attentions
        return lambda *inputs: part(*inputs) * factor if is_last else part(*inputs)

    def last_layer(self, x, time):
        return x[..., : self.linear.out_features].float()

    monkeypatch.setattr(torch, "compile", scaled)
    monkeypatch.setattr(FinalLayer, "forward", last_layer)
    one_block = replace(rig, scale=replace(TOY, dit=replace(TOY.dit, depth=1)))
    found = dict(gpu_cases.base_forward(one_block))
    assert found["compiled: relative error"] == pytest.approx(error)


def test_kernels_that_a_cpu_lacks_are_not_reported_as_exact(rig):
    also_on_cpu = ("parts", "mask", "int8")
    found = {
        name: value for name, value in gpu_cases.kernels(rig) if not any(word in name for word in also_on_cpu)
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
