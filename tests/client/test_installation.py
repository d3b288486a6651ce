"""The package can be built, installed and used where nothing of this repository is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib.metadata, importlib.util, sys
from longcat_video_client import Client
from longcat_video_client.testing import FakeService

assert not any(importlib.util.find_spec(name) for name in ("jobs", "model", "service", "worker"))
with Client("http://fake", transport=FakeService()) as client:
    print(importlib.metadata.version("longcat-video-client"), client.generate("a").status)
"""


@pytest.mark.integration
def test_package_works_without_the_repository(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words):
        return subprocess.run(
            words, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    source = shutil.copytree(ROOT / "client", tmp_path / "source")  # setuptools builds inside the source
    run(sys.executable, "-m", "venv", "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(source))
    assert run(python, "-c", PROGRAM) == "0.4.0 succeeded\n"
    (package,) = (tmp_path / "venv").rglob("longcat_video_client")
    assert (package / "py.typed").exists()
    installed = run(python, "-m", "pip", "list", "--format", "freeze").split()
    assert "longcat-video-client==0.4.0" in installed
    assert not [line for line in installed if line.startswith(("torch", "fastapi", "redis"))]
