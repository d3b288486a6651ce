"""Connect a supervisor and its rank 0, or all its ranks, through a Unix socket, one JSON message a line.

The socket is in a folder that only this user can enter.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from jobs.errors import UnreadableRecord
from jobs.private_files import close_to_others, make_private_folder
from worker.messages import Message, parse

logger = logging.getLogger(__name__)


def log_unreadable(error: UnreadableRecord) -> None:
    """Log a message that is passed over because this release cannot read it."""
    logger.error("passed over a message: %s", error)


class Channel:
    """An end of a connection. Any thread may send; one thread may receive.

    `report` is called for each received message that this release cannot read.
    """

    def __init__(
        self, connected: socket.socket, report: Callable[[UnreadableRecord], None] = log_unreadable
    ) -> None:
        self._socket = connected
        self._report = report
        self._incoming = connected.makefile("rb")
        self._send_lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message. Raises OSError when the other end is closed."""
        with self._send_lock:
            self._socket.sendall(message.model_dump_json().encode() + b"\n")

    def recv(self) -> Message | None:
        """Wait for a message. Return None when either end is closed, even in the middle of a message.

        A message that this release cannot read is passed over.
        """
        while (line := self._readline()).endswith(b"\n"):
            try:
                return parse(line)
            except ValidationError as error:
                self._report(UnreadableRecord(str(error.errors(include_input=False))))
        return None

    def _readline(self) -> bytes:
        try:
            return self._incoming.readline()
        except (OSError, ValueError):  # ValueError: this end was closed before
            return b""

    def close(self) -> None:
        """Close the connection. A thread that waits in `recv`, at either end, gets None."""
        with suppress(OSError):  # the other end closed it before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._incoming.close()
        self._socket.close()


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path` for one connection, and make its folder private."""
    make_private_folder(path.parent)
    close_to_others(path.parent)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short_name(path.parent) as folder:
        listening.bind(f"{folder}/{path.name}")
    listening.listen(1)
    return listening


def connect(path: Path) -> Channel:
    """Connect to the process that listens at `path`. Raises OSError."""
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_name(path.parent) as folder:
            connecting.connect(f"{folder}/{path.name}")
    except OSError:
        connecting.close()
        raise
    return Channel(connecting)


@contextmanager
def _short_name(folder: Path) -> Iterator[str]:
    """Yield a short name of a folder: the address of a Unix socket has 107 bytes at most."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
