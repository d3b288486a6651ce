"""Run a program in a process of its own, without the run-time type checks of tests.

The checks hold the arguments of functions, so tensors would live longer than in a worker.
"""

from __future__ import annotations

import os
import subprocess
import sys


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the text of a Python program on one thread, and return its output. Fail the test if it fails."""
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished
