"""Check that the launcher and the supervisor run where torch cannot be imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDE = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "diffusers", "transformers", "av", "numpy"}:
            raise ImportError(f"{name} is hidden")
sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize(
    "module", ["worker.__main__", "worker.supervisor.app", "worker.supervisor.supervisor", "worker.launcher"]
)
def test_module_is_imported_without_torch(module):
    code = f"{HIDE}\nimport {module}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", "False\n")


def test_rank_needs_torch():
    done = subprocess.run(
        [sys.executable, "-c", f"{HIDE}\nimport worker.rank.main"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torch is hidden" in done.stderr
