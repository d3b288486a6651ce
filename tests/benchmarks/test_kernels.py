"""Test what is said of compiled kernels. The compilation itself is `make kernels`, which needs Triton."""

from __future__ import annotations

import json

import pytest

from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels.gpus import GPUS

TABLE = json.loads(kernels.TABLE.read_text())
ROW: dict[str, float] = {"registers": 40, "spilled_bytes": 0, "shared_bytes": 1024}


def test_a_kernel_that_needs_too_much_shared_memory_is_reported():
    limit = GPUS[89].shared_bytes
    assert kernels.unfit(GPUS[89], {"fits": ROW | {"shared_bytes": limit}}) == []
    faults = kernels.unfit(GPUS[89], {"too large": ROW | {"shared_bytes": limit + 1}})
    assert faults == [f"sm_89, too large: needs {limit + 1} bytes of shared memory of {limit}"]


def test_every_row_that_differs_from_the_table_is_reported():
    table = {"90": {"same": ROW, "other": ROW, "gone": ROW}, "80": {"not compiled now": ROW}}
    found = {"90": {"same": ROW, "other": ROW | {"spilled_bytes": 8}, "new": ROW}}
    reported = [fault.split(":")[0] for fault in kernels.differences(table, found)]
    assert reported == ["sm_90, gone", "sm_90, new", "sm_90, other"]


def test_the_page_shows_the_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "versions", lambda: TABLE["versions"])
    assert kernels.page(TABLE["gpus"]) == kernels.PAGE.read_text()


def test_the_table_has_every_gpu_and_nothing_in_it_is_too_large_or_spills_in_bf16():
    assert sorted(map(int, TABLE["gpus"])) == sorted(GPUS)
    for architecture, rows in TABLE["gpus"].items():
        assert kernels.unfit(GPUS[int(architecture)], rows) == []
        assert {name for name, row in rows.items() if row["spilled_bytes"]} <= {
            "block-sparse attention, fp32"
        }
