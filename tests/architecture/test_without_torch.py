"""Test that the API, the supervisor and the stack run where torch is not installed."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.architecture.source import ROOT, modules
from tests.servers import answers, free_port
from tests.waiting import wait_until

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

if "model.media.forkserver" not in sys.orig_argv:
    sys.meta_path.insert(0, Blocker())
"""
OF_RANKS = {"torch", "diffusers", "transformers", "tokenizers"}
NOT_OF_THE_API = OF_RANKS | {"safetensors", "numpy", "boto3"}

TORCH_FREE = [
    module.path
    for module in modules("jobs", "service", "stack", "worker", "model/media", "model/spec")
    if not module.path.startswith("worker/rank/")
]


def without(blocked, folder):
    """Return an environment in which these packages cannot be imported, except by decoders of inputs."""
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked))
    return {**os.environ, "PYTHONPATH": f"{folder}:{os.environ['PYTHONPATH']}"}


def test_the_blocker_blocks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env=without(OF_RANKS, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torch is not installed here" in done.stderr


def test_everything_but_the_ranks_imports_without_torch(tmp_path):
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in TORCH_FREE]
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=without(OF_RANKS, tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_api_starts_without_torch_and_numpy(redis_server, tmp_path):
    port = free_port()
    environment = without(NOT_OF_THE_API, tmp_path)
    settings = {
        "LONGCAT_REDIS_URL": redis_server,
        "LONGCAT_PORT": str(port),
        "LONGCAT_DATA_DIR": str(tmp_path / "data"),
    }
    command = [sys.executable, "-m", "service"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env={**environment, **settings}, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(port, "/openapi.json") or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log").read_text()
    finally:
        process.terminate()
        process.wait()
