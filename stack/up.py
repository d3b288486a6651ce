"""Bringing the whole stack up and taking it down: Redis, the API, a worker.

`stack.serve` and `stack.demo` call `stack_up`. It knows the other parts as programs,
and learns from Redis when a worker is ready.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from redis import Redis

from jobs.connect import check_server, connect
from jobs.errors import Unavailable, UnfitServer
from jobs.private_files import make_private_folder
from jobs.registration import live_groups
from stack.errors import StackError
from stack.processes import Program, WriteLine, running
from stack.redis_server import open_redis
from stack.settings import StackSettings, environment_for_children, environment_for_worker

API = Program("api", "service")
WORKER = Program("worker", "worker", niceness=10)  # on a shared processor, answers come before frames
READY_TIMEOUT_S = 3600.0  # the released weights take their time


@dataclass(frozen=True)
class Stack:
    """A stack that answers at `url` and is ready for jobs."""

    url: str
    processes: Mapping[str, subprocess.Popen[str]]

    def check(self) -> None:
        """Raises StackError if one of its processes has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise StackError(
                    f"the {name} ended by itself (exit code {process.returncode}); see its lines"
                )


@contextmanager
def stack_up(settings: StackSettings, write_line: WriteLine) -> Iterator[Stack]:
    """Start everything, yield when it is ready for jobs, and end everything.

    Raises StackError for a port in use, no checkpoint, no Redis, and for a process that ends by itself.
    """
    folder = settings.data_dir.resolve()
    _check_port(settings.host, settings.port)
    _check_checkpoint(settings.checkpoint)
    make_private_folder(folder)
    with ExitStack() as parts:
        redis_url = parts.enter_context(open_redis(folder / "redis", settings.redis_url))
        if settings.redis_url:
            _check_redis(redis_url)
        environment = environment_for_children(
            redis_url=redis_url,
            data_dir=folder,
            host=settings.host,
            port=settings.port,
            checkpoint=settings.checkpoint.absolute(),
        )
        environments = {API: environment, WORKER: environment_for_worker(environment)}
        processes = {
            program.name: parts.enter_context(running(program, given, write_line))
            for program, given in environments.items()
        }
        stack = Stack(f"http://{settings.host}:{settings.port}", processes)
        _wait_until_ready(stack, redis_url)
        yield stack


def _check_port(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise StackError(f"{host}:{port} cannot be used ({error.strerror}); set LONGCAT_PORT") from None


def _check_checkpoint(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise StackError(f"LONGCAT_CHECKPOINT names no folder: {checkpoint}")


def _check_redis(redis_url: str) -> None:
    try:
        with connect(redis_url, patience_s=5.0) as redis:
            check_server(redis)
    except (Unavailable, UnfitServer) as error:
        raise StackError(f"LONGCAT_REDIS_URL: {error.message}") from None


def _wait_until_ready(stack: Stack, redis_url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with connect(redis_url) as redis:
        while not (_a_group_is_ready(redis) and _answers(stack.url)):
            stack.check()
            if time.monotonic() > deadline:
                raise StackError(f"not ready after {READY_TIMEOUT_S:.0f} s; see the lines above")
            time.sleep(0.1)


def _a_group_is_ready(redis: Redis) -> bool:
    return any(group.state in {"ready", "busy"} for group in live_groups(redis))


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10.0).is_success
    except httpx.HTTPError:  # not there yet
        return False
