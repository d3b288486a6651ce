"""Choose the threads in which routes run that create jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any, TypeVar

from fastapi.concurrency import run_in_threadpool

from service.backend import RequestBackend
from service.inputs.body import Body

Returned = TypeVar("Returned")


def in_submission_threads(route: Callable[..., Returned]) -> Callable[..., Awaitable[Returned]]:
    """Run a route in a thread; if its body has inputs, in a bounded pool that only such requests use.

    Fetching and decoding inputs can take a minute. Requests without inputs only talk to Redis and use the
    threads of all other routes. The route must take `backend` and `body`. Raises LimitReached or Busy if too
    many requests with inputs are in progress.
    """

    @wraps(route)
    async def run(*, backend: RequestBackend, body: Body | None, **arguments: Any) -> Returned:  # noqa: ANN401
        work = partial(route, backend=backend, body=body, **arguments)
        if body and body.has_inputs:
            return await backend.capacities.run_with_inputs(backend.caller.owner, work)
        return await run_in_threadpool(work)

    return run
