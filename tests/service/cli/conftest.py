"""Fixtures: run a command in this process against a service that listens on a socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from service.cli.__main__ import main
from tests.service import conftest as of_service

# The service and its worker, as all tests of the service have them.
app = of_service.app
client = of_service.client
listening = of_service.listening
live = of_service.live
no_worker_yet = of_service.no_worker_yet
running = of_service.running
settings = of_service.settings
worker = of_service.worker


@dataclass(frozen=True)
class Ran:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Return a function that runs a command."""

    def command(*given: Any) -> Ran:
        try:
            code = main([str(word) for word in given])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ran(code, *capsys.readouterr())

    return command


@pytest.fixture
def at_service(run: Callable[..., Ran], live: int) -> Callable[..., Ran]:
    """Return a function that runs a command against the service."""
    return lambda *given: run("--url", f"http://127.0.0.1:{live}", "--patience", 0, *given)
