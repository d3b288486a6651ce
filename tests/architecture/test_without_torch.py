"""Test that the API, the supervisor and the stack run where torch is not installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.architecture.source import ROOT, modules
from tests.servers import answers, free_port
from tests.waiting import wait_until

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "diffusers", "transformers", "tokenizers"}:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
"""

TORCH_FREE = [
    module.path
    for module in modules("jobs", "service", "stack", "worker", "model/media", "model/spec")
    if not module.path.startswith("worker/rank/")
]


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"}


def test_the_blocker_blocks(environment):
    done = subprocess.run(
        [sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True, check=False
    )
    assert "torch is not installed here" in done.stderr


def test_everything_but_the_ranks_imports_without_torch(environment):
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in TORCH_FREE]
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_api_starts_without_torch(environment, redis_server, tmp_path):
    port = free_port()
    settings = {
        "LONGCAT_REDIS_URL": redis_server,
        "LONGCAT_PORT": str(port),
        "LONGCAT_DATA_DIR": str(tmp_path / "data"),
    }
    command = [sys.executable, "-m", "service"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env={**environment, **settings}, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(port, "/livez") or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log").read_text()
    finally:
        process.terminate()
        process.wait()
