"""Check that the launcher and the supervisor run where torch cannot be imported."""

from __future__ import annotations

import subprocess
import sys

HIDE = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "diffusers", "transformers", "av", "numpy"}:
            raise ImportError(f"{name} is hidden")
sys.meta_path.insert(0, Hidden())
"""


def test_launcher_and_supervisor_are_imported_without_torch():
    code = f"{HIDE}\nimport worker.__main__, worker.launcher, worker.supervisor.app"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


def test_rank_needs_torch():
    done = subprocess.run(
        [sys.executable, "-c", f"{HIDE}\nimport worker.rank.main"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torch is hidden" in done.stderr
