"""Connect the supervisor of a group with its rank 0: a Unix socket that carries one JSON message a line.

The socket lies in a folder that only this user may enter.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from jobs.private_files import close_to_others, make_private_folder
from worker.messages import Message, parse


class Channel:
    """One end of a connection. Any thread may `say`; one thread may `hear`."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._incoming = connected.makefile("rb")
        self._one_speaker = threading.Lock()

    def send(self, message: Message) -> None:
        """Send. Raises OSError when the other side is gone."""
        with self._one_speaker:
            self._socket.sendall(message.model_dump_json().encode() + b"\n")

    def recv(self) -> Message | None:
        """Wait for a message; None when the other side is gone, even in the middle of one."""
        try:
            line = self._incoming.readline()
        except OSError:
            return None
        return parse(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        """Hang up; whoever hears on either end hears None."""
        with suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._incoming.close()
        self._socket.close()


def listen(path: Path) -> socket.socket:
    """A socket at `path` for one to call; its folder becomes this user's alone."""
    make_private_folder(path.parent)
    close_to_others(path.parent)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _Folder(path.parent) as folder:
        listening.bind(f"{folder}/{path.name}")
    listening.listen(1)
    return listening


def call(path: Path) -> Channel:
    """Connect to whoever listens at `path`. Raises OSError."""
    calling = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _Folder(path.parent) as folder:
        calling.connect(f"{folder}/{path.name}")
    return Channel(calling)


class _Folder:
    """A short name for a folder while it is open: a socket's address has 107 bytes at most."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._handle = os.open(self._path, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._handle}"

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
