"""Decode files in confined child processes.

A `Sandbox` has one fork server (`model.media.forkserver`). It starts the server when it first needs it, and
again if the server has died. It trusts no data of a child: the file may have taken control of the process.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from threading import BoundedSemaphore, Lock
from types import TracebackType
from typing import Any, BinaryIO

from model.media.errors import SandboxUnavailable, UnusableMedia
from model.media.protocol import MAX_MESSAGE_BYTES, Request

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[2]
_START_LIMIT_S = 60.0
_GRACE_S = 5.0  # beyond the time limit, which the kernel enforces
_END_LIMIT_S = 5.0
_DEATH_SEEN_S = 0.5
_CHUNK_BYTES = 1 << 20


class Sandbox(AbstractContextManager["Sandbox"]):
    """Run decoders in confined processes, at most `max_decodes` at a time. Safe to use from several threads.

    A decode uses at most `memory_bytes` beyond the memory of the fork server, and waits up to `max_wait_s`
    for others to end. `decoders` names the module of the decoders.
    """

    def __init__(
        self,
        max_decodes: int = 1,
        memory_bytes: int = 512 << 20,
        max_wait_s: float = 60.0,
        decoders: str = "model.media.decoders",
    ) -> None:
        self._memory_bytes = memory_bytes
        self._max_wait_s = max_wait_s
        self._decoders = decoders
        self._slots = BoundedSemaphore(max_decodes)
        self._server: _ForkServer | None = None
        self._starting = Lock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the fork server, so that the first decode does not wait for it. Raises SandboxUnavailable."""
        self._running_server()

    def close(self) -> None:
        """End the fork server and the decodes under way."""
        with self._starting:
            if self._server:
                self._server.close()
            self._server = None

    @contextmanager
    def decode(
        self, decoder: str, path: Path, timeout_s: float, arguments: dict[str, Any]
    ) -> Iterator[Decoded]:
        """Run a decoder on a file. Its data can be read inside the context.

        Raises:
            UnusableMedia: the file cannot be decoded, or takes too much memory or time.
            SandboxUnavailable: a retry can help.
            OSError: the file cannot be opened.
        """
        request = Request(decoder, arguments, self._memory_bytes, timeout_s)
        with path.open("rb") as source:
            if not self._slots.acquire(timeout=self._max_wait_s):
                raise SandboxUnavailable("too many files are waiting to be decoded")
            try:
                with self._decoded(request, source) as decoded:
                    yield decoded
            finally:
                self._slots.release()

    @contextmanager
    def _decoded(self, request: Request, source: BinaryIO) -> Iterator[Decoded]:
        server = self._running_server()
        try:
            decoded = server.decode(request, source)
        except _ForkServerDied:  # not because of this file: a child cannot signal the server
            decoded = self._running_server().decode(request, source)
        with decoded.reply:
            try:
                yield decoded
            except TimeoutError as error:
                raise UnusableMedia(f"takes longer than {request.timeout_s:g} s to decode") from error

    def _running_server(self) -> _ForkServer:
        with self._starting:
            if self._server is None or not self._server.is_alive:
                if self._server:
                    self._server.close()
                self._server = _ForkServer(self._decoders)
                weakref.finalize(self, self._server.close)
            return self._server


class Decoded:
    """The facts that a decoder returned, and its data, which `fill` or `save` reads from `reply`."""

    def __init__(self, facts: dict[str, Any], size_bytes: int, reply: BufferedReader) -> None:
        self.facts = facts
        self.size_bytes = size_bytes
        self.reply = reply

    def fill(self, buffer: memoryview) -> None:
        """Read all data into a buffer of its size. Raises UnusableMedia."""
        if self.size_bytes != buffer.nbytes or self.reply.readinto(buffer) != buffer.nbytes:
            raise UnusableMedia("cannot be decoded to its end")

    def save(self, path: Path, max_bytes: int) -> None:
        """Write the data to a file. Raises UnusableMedia."""
        if self.size_bytes > max_bytes:
            raise UnusableMedia(f"is larger than {max_bytes} bytes when decoded")
        left = self.size_bytes
        with path.open("wb") as target:
            while left > 0 and (chunk := self.reply.read(min(left, _CHUNK_BYTES))):
                left -= target.write(chunk)
        if left:
            raise UnusableMedia("cannot be decoded to its end")


class _ForkServerDied(SandboxUnavailable):
    """The fork server ended before its child replied."""


class _ForkServer:
    """A process of `model.media.forkserver`, which ends when this is closed or its owner's process ends."""

    def __init__(self, decoders: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "model.media.forkserver", decoders]
        environment = {
            "OPENBLAS_NUM_THREADS": "1",  # a process with threads cannot be forked
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # where its owner finds packages
        }
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd=_ROOT,
                start_new_session=True,
            )
        self._control.settimeout(_START_LIMIT_S)
        try:
            ready = json.loads(self._control.recv(MAX_MESSAGE_BYTES))
        except (OSError, ValueError) as error:
            self._process.kill()
            self.close()
            raise SandboxUnavailable("the fork server does not start") from error
        if not ready["filtered"]:
            logger.warning(
                "system calls of decoders cannot be filtered on this machine; their other limits hold"
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._control.close()
        try:
            self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def decode(self, request: Request, source: BinaryIO) -> Decoded:
        """Decode the file in a child process. Raises UnusableMedia, SandboxUnavailable."""
        submitted_at = time.monotonic()
        with ExitStack() as on_error:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.settimeout(request.timeout_s + _GRACE_S)
                reply = on_error.enter_context(ours.makefile("rb"))
                message = json.dumps(asdict(request)).encode()
                try:
                    socket.send_fds(self._control, [message], [source.fileno(), theirs.fileno()])
                except OSError as error:
                    self.kill()
                    raise _ForkServerDied("the fork server died") from error
            try:
                decoded = self._read_reply(request, reply, submitted_at)
            except TimeoutError as error:
                self.kill()
                raise SandboxUnavailable("the fork server hangs") from error
            on_error.pop_all()
        return decoded

    def _read_reply(self, request: Request, reply: BufferedReader, submitted_at: float) -> Decoded:
        is_confined = reply.readline(1)  # an empty line: the child is confined
        if line := reply.readline(MAX_MESSAGE_BYTES):
            return _parsed(line, reply)
        if time.monotonic() - submitted_at >= request.timeout_s:
            raise UnusableMedia(f"takes longer than {request.timeout_s:g} s to decode")
        if not is_confined:
            raise self._failure(SandboxUnavailable("the fork server cannot fork"))
        raise self._failure(UnusableMedia("cannot be decoded: it makes the decoder crash"))

    def _failure(self, otherwise: Exception) -> Exception:
        """Return why a child ended early: `_ForkServerDied` if the fork server has, else `otherwise`."""
        with suppress(subprocess.TimeoutExpired):  # the end of a process is visible only after a moment
            self._process.wait(_DEATH_SEEN_S)
            return _ForkServerDied("the fork server died")
        return otherwise


def _parsed(line: bytes, reply: BufferedReader) -> Decoded:
    try:
        answer = json.loads(line)
        if "problem" not in answer:
            return Decoded({**answer["facts"]}, int(answer["size_bytes"]), reply)
        if "detail" in answer:
            logger.info("a file was refused as damaged: %.2000s", ascii(answer["detail"]))
        problem = str(answer["problem"])[:200]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnusableMedia("cannot be decoded") from error
    raise UnusableMedia(problem)
