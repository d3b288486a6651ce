"""Where the routes run that create jobs: outside of the event loop, and apart from all other requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any, TypeVar

from fastapi.concurrency import run_in_threadpool

from service.backend import Backend
from service.inputs.body import Body

Answer = TypeVar("Answer")


def in_order_threads(route: Callable[..., Answer]) -> Callable[..., Awaitable[Answer]]:
    """Run a route with a backend and a body in a thread, in bounded threads of their own if it has inputs.

    Without inputs it only speaks to Redis, as the other routes do. Raise LimitReached or Busy where there are
    too many with inputs already.
    """

    @wraps(route)
    async def run(*, backend: Backend, body: Body, **given: Any) -> Answer:  # noqa: ANN401
        work = partial(route, backend=backend, body=body, **given)
        if body.has_inputs:
            return await backend.capacities.run_with_inputs(backend.owner, work)
        return await run_in_threadpool(work)

    return run
