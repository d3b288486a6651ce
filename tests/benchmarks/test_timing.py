"""How seconds are taken and figures drawn; and the benchmark for GPUs, small, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest
import torch

from benchmarks import timing
from benchmarks.plot import LENGTH, bars
from benchmarks.timing import WARM_UPS, ceilings, medians

CPU = torch.device("cpu")


def test_works_are_timed_in_turn_after_warming_up():
    done = []
    taken = medians({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, CPU, rounds=3)
    assert done == ["a"] * WARM_UPS + ["b"] * WARM_UPS + ["a", "b"] * 3
    assert set(taken) == {"a", "b"}


def test_a_figure_is_the_median_of_its_rounds(monkeypatch):
    clock = iter([1.0, 9.0, 2.0])
    monkeypatch.setattr(timing, "seconds", lambda work, device: next(clock))
    assert medians({"a": lambda: None}, CPU, rounds=3) == {"a": 2.0}


def test_the_ceilings_of_a_cpu_are_its_products_and_copies():
    found = ceilings(CPU, side=32, copied_bytes=1024)
    assert set(found) == {"bf16 TFLOP/s", "copy GB/s"}
    assert all(value > 0 for value in found.values())


def test_a_bar_is_as_long_as_its_share_and_names_are_escaped():
    drawn = ET.fromstring(bars("R & D", {"half": 50.0, "all < 1": 100.0}, 100.0, "%"))
    widths = [element.get("width") for element in drawn if element.get("fill") == "#3b6ea5"]
    assert widths == [f"{LENGTH / 2:.1f}", f"{LENGTH:.1f}"]
    texts = [element.text for element in drawn if element.text and element.text.strip()]
    assert texts == ["R & D", "half", "50.0 %", "all < 1", "100.0 %"]


@pytest.mark.soak
def test_the_benchmark_for_gpus_runs_small_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--rounds", "1", "--out", str(tmp_path)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["toy"]
    for case in ("480p b=1", "480p b=2", "refine"):
        assert any(name.startswith("compiled") for name in found[case])
    whole = found["distilled clip"]
    assert whole["sum: s"] == pytest.approx(
        sum(whole[f"{name}: s"] for name in ("text", "steps", "decode", "film"))
    )
    ET.fromstring((tmp_path / "gpu.svg").read_text())
