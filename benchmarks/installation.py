"""A whole installation to measure: a real stack with a tiny checkpoint, in a folder that goes with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from model.tiny import write_tiny
from stack.demo import free_port
from stack.settings import StackSettings
from stack.stack import running_stack


@contextmanager
def client_of_stack() -> Iterator[httpx.Client]:
    """Start a stack with the settings of this process's environment, and yield a client of it."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny(checkpoint := Path(folder) / "checkpoint")
        settings = StackSettings(data_dir=Path(folder), port=free_port(), checkpoint=checkpoint)
        with (
            (Path(folder) / "log").open("w") as log,
            running_stack(settings, lambda name, line: print(name, line, file=log)) as stack,
            httpx.Client(base_url=stack.url, timeout=60.0) as client,
        ):
            yield client
