"""What is said of approximations is what was run; and the benchmark itself, on a small checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.balanced import Made, _psnr, counted, report


class Blocks(nn.Module):
    """Three blocks, of which the later ones are run where that is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(3))

    def forward(self, x, count=3):
        for block in self.blocks[:count]:
            x = block(x)
        return x


def made(latents: float, blocks: int, flops: int) -> Made:
    return Made(torch.full((2,), latents), torch.full((3,), latents / 4), Counter(blocks=blocks), flops, 1.0)


def test_forwards_and_the_blocks_run_in_them_are_counted():
    dit: Any = Blocks()
    with counted(dit) as counts:
        dit(torch.ones(1))
        dit(torch.ones(1), 1)
    dit(torch.ones(1))
    assert counts == {"forwards": 2, "blocks": 4}


def test_shares_and_errors_are_those_of_the_exact_job():
    row = made(1.1, 60, 130).beside(made(1.0, 100, 200))
    assert row["blocks run, %"] == pytest.approx(60)
    assert row["FLOPs run, %"] == pytest.approx(65)
    assert row["latents, relative error"] == pytest.approx(0.1, rel=1e-5)
    assert row["frames, PSNR in dB"] == pytest.approx(32.04, abs=0.01)
    assert "to latents, s" not in row  # not on a CPU


def test_frames_that_are_all_the_same_have_no_ratio():
    assert _psnr(torch.ones(3), torch.ones(3)) is None
    assert _psnr(torch.zeros(3), torch.ones(3)) == 0


def test_a_report_has_a_line_for_each_way():
    exact = made(1.0, 100, 200)
    rows = {"exact": exact.beside(exact), "fp8": made(1.1, 100, 200).beside(exact)}
    page = report({"steps": 50}, rows)
    assert "- steps: 50" in page
    assert "| exact | 100.0 | 100.0 | 0 | the same |" in page
    assert "| fp8 | 100.0 | 100.0 | 0.1 | 32.0 |" in page


@pytest.mark.soak
def test_the_benchmark_runs_on_the_checkpoint_that_ships(tmp_path):
    command = [sys.executable, "-m", "benchmarks.balanced", "--steps", "12", "--out", str(tmp_path)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    rows = json.loads((tmp_path / "balanced.json").read_text())["jobs"]
    assert rows["exact"]["frames, PSNR in dB"] is None
    for name, row in rows.items():
        runs_all = row["blocks run, %"] == pytest.approx(100)
        assert (row["latents, relative error"] > 0) == ("8" in name.partition(",")[0] or not runs_all)
