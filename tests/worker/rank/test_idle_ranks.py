"""Ranks that have nothing to do for many times the longest collective still do the order that comes then.

Twelve hours stand for any time: what ends a wait is its timeout, so it is the timeouts that are short here.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.worker.running_worker import ROOT
from worker.rank.consensus import IDLE_TIMEOUT


def idle_then_work(folder: Path, where: str) -> list[tuple[int, str]]:
    """What both ranks say in the end, with their exit statuses."""
    command = [sys.executable, "-m", "tests.worker.idle_rank"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "store"), where],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    return [(rank.returncode, words.strip()) for rank, words in zip(ranks, said, strict=True)]


@pytest.mark.faults
def test_ranks_that_idled_for_long_do_the_next_order(tmp_path):
    assert idle_then_work(tmp_path, "agreement") == [(0, "order 2"), (0, "order 2")]


@pytest.mark.faults
def test_they_could_not_if_they_waited_in_the_group_of_the_model(tmp_path):
    assert all(status for status, _ in idle_then_work(tmp_path, "model"))


def test_their_patience_outlasts_any_night():
    assert timedelta(hours=12) < IDLE_TIMEOUT
