"""Times are taken in turn, and ceilings are measured."""

from __future__ import annotations

import torch

from benchmarks import timing
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
    found = dict(ceilings(CPU, side=32, copied_bytes=1024))
    assert set(found) == {"bf16 TFLOP/s", "copy GB/s"}
    assert all(value > 0 for value in found.values())
