"""Start Redis, the API and a worker as processes, wait until they accept jobs, and stop them again."""

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
from stack.processes import Program, WriteLine, running_program
from stack.redis_server import RedisServer, find_redis
from stack.settings import StackSettings, environment_for_children, environment_for_worker

API = Program("api", "service")
WORKER = Program("worker", "worker", niceness=10)  # the API answers quickly even if both share a processor
READY_TIMEOUT_S = 3600.0  # the released weights take long to load


@dataclass(frozen=True)
class Stack:
    """A stack that accepts jobs at `url`."""

    url: str
    processes: Mapping[str, subprocess.Popen[str]]
    redis: RedisServer | None
    write_line: WriteLine

    def check(self) -> None:
        """Start its own Redis again if that has exited. The API and the worker wait for it.

        Raises:
            StackError: The API or the worker has exited, or Redis does not start.
        """
        self.restart_redis()
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise StackError(
                    f"the {name} exited unexpectedly (exit code {process.returncode}); see its output"
                )

    def restart_redis(self) -> None:
        """Start the Redis of this stack again if it has exited. Raise StackError if it does not start."""
        if self.redis and (exit_code := self.redis.exit_code) is not None:
            self.write_line("stack", f"Redis exited (exit code {exit_code}) and is started again")
            self.redis.start()


@contextmanager
def running_stack(settings: StackSettings, write_line: WriteLine) -> Iterator[Stack]:
    """Start a stack, yield it when it accepts jobs, and stop it.

    Args:
        settings: Where it listens and keeps its data. Without a `redis_url` it starts its own Redis.
        write_line: Called with each line that the API and the worker write, and with news of Redis.

    Raises:
        StackError: The port is in use, there is no checkpoint or no Redis, or a process exits.
    """
    folder = settings.data_dir.resolve()
    _check_port(settings.host, settings.port)
    _check_checkpoint(settings.checkpoint)
    make_private_folder(folder)
    with ExitStack() as parts:
        redis = None
        if settings.redis_url:
            redis_url = settings.redis_url
            redis_address = settings.redis_address
            _check_redis(redis_address)
        else:
            program = find_redis(settings.redis_server)
            redis = parts.enter_context(RedisServer(folder / "redis", program))
            redis_url = redis_address = redis.url
        environment = environment_for_children(
            redis_url=redis_url,
            data_dir=folder,
            host=settings.host,
            port=settings.port,
            checkpoint=settings.checkpoint.absolute(),
        )
        environments = {API: environment, WORKER: environment_for_worker(environment)}
        processes = {
            program.name: parts.enter_context(running_program(program, given, write_line))
            for program, given in environments.items()
        }
        stack = Stack(f"http://{settings.host}:{settings.port}", processes, redis, write_line)
        parts.callback(stack.restart_redis)  # the worker needs it to put its jobs back when it stops
        _wait_until_ready(stack, redis_address)
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
        raise StackError(f"LONGCAT_CHECKPOINT is not a folder: {checkpoint}")


def _check_redis(redis_address: str) -> None:
    try:
        with connect(redis_address, deadline_s=5.0) as redis:
            check_server(redis)
    except (Unavailable, UnfitServer) as error:
        raise StackError(f"LONGCAT_REDIS_URL: {error.message}") from None


def _wait_until_ready(stack: Stack, redis_address: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with connect(redis_address, deadline_s=1.0) as redis:
        while not (_has_ready_group(redis) and _api_is_ready(stack.url)):
            stack.check()
            if time.monotonic() > deadline:
                raise StackError(f"the stack is not ready after {READY_TIMEOUT_S:.0f} s; see its output")
            time.sleep(0.1)


def _has_ready_group(redis: Redis) -> bool:
    try:
        return any(group.state in {"ready", "busy"} for group in live_groups(redis))
    except Unavailable:  # it exited, and is started again
        return False


def _api_is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10.0).is_success
    except httpx.HTTPError:  # it does not listen yet
        return False
