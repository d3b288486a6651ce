"""Serve a second app, on `OPS_PORT`, in the process and event loop of the service."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI

from service.http.protocol import server_options

_GRACE_S = 2  # requests for metrics are short


@asynccontextmanager
async def serve_alongside(app: FastAPI, host: str, port: int) -> AsyncIterator[int]:
    """Serve an app while the context is open. Yield its port. Raise OSError if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        options = server_options(app.state.backend.settings.connection_limits)
        config = uvicorn.Config(app, lifespan="off", timeout_graceful_shutdown=_GRACE_S, **options)
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


class _Server(uvicorn.Server):
    """A server that leaves signals to the server of the API."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield
