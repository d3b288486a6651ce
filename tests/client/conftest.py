"""Fixtures: both clients, so that each test runs with either, and the service that they call."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from longcat_video_client import AsyncClient, Client, RetryPolicy
from tests.client.proxy import Proxy, proxied
from tests.service import conftest as of_service

# The service and its worker, as all tests of the service have them.
_no_maintenance = of_service._no_maintenance
app = of_service.app
client = of_service.client
listening = of_service.listening
live = of_service.live
no_worker_yet = of_service.no_worker_yet
running = of_service.running
settings = of_service.settings
worker = of_service.worker

QUICK = RetryPolicy(total_s=600.0, first_delay_s=0.01, max_delay_s=0.05)


class Blocking:
    """Call an object with asynchronous methods without `await`, so that one test serves both clients."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return Blocking(found, self._runner)

        def call(*given: Any, **named: Any) -> Any:
            result = found(*given, **named)
            return self._iterate(result) if inspect.isasyncgen(result) else self._runner.run(result)

        return call

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        end = object()
        try:
            while (item := self._runner.run(_next(items, end))) is not end:
                yield item
        finally:
            self._runner.run(items.aclose())  # type: ignore[attr-defined]


async def _next(items: AsyncIterator[Any], end: object) -> Any:
    return await anext(items, end)


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Return a function that makes a client of a URL: a `Client`, or an `AsyncClient` that blocks."""
    with ExitStack() as stack:

        def make(url: str, *given: Any, **named: Any) -> Any:
            named.setdefault("retry", QUICK)
            if request.param == "sync":
                return stack.enter_context(Client(url, *given, **named))
            runner = stack.enter_context(asyncio.Runner())
            made = Blocking(AsyncClient(url, *given, **named), runner)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that gets the pauses of both clients, which no longer wait."""
    pauses: list[float] = []

    async def sleep(duration_s: float) -> None:
        pauses.append(duration_s)

    monkeypatch.setattr("longcat_video_client.client.time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(
        "longcat_video_client.async_client.asyncio",
        SimpleNamespace(sleep=sleep, CancelledError=asyncio.CancelledError),
    )
    return pauses


@pytest.fixture
def service(connect: Callable[..., Any], live: int) -> Any:
    """Return a client of the running service."""
    return connect(f"http://127.0.0.1:{live}")


@pytest.fixture
def proxy(live: int) -> Iterator[Proxy]:
    """Run a proxy in front of the service."""
    with proxied(live) as proxy:
        yield proxy
