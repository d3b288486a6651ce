from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import psutil

from tests.waiting import wait_until

PARENT = """
import os, subprocess, sys
rank = [sys.executable, "-m", "worker.rank.start", "tests.worker.rank.importing_rank", "the setup"]
subprocess.run([*rank, str(os.getpid())])
"""


def test_rank_dies_with_its_parent_while_its_module_is_imported():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, _, arguments = parent.stdout.readline().rstrip("\n").partition(" ")
        rank = psutil.Process(int(pid))
        parent.kill()
    try:
        assert arguments == "['the setup']"
        wait_until(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE)
    finally:
        with suppress(psutil.NoSuchProcess):
            rank.kill()
