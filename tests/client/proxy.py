"""A TCP proxy that cuts, stalls and slows down the responses of a service."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """A proxy on `port`, which forwards connections to `target_port`; both on 127.0.0.1.

    Attributes:
        cut_after: response bytes after which a connection is closed, for each connection in turn. Connections
            beyond the list are not cut.
        stall_after: the same for connections that stay open and forward nothing more.
        pause_s: the pause after each piece of a response, of at most `piece_bytes`.
        num_connections: how many connections were made so far.
    """

    port: int
    target_port: int
    cut_after: list[int] = field(default_factory=list)
    stall_after: list[int] = field(default_factory=list)
    pause_s: float = 0.0
    piece_bytes: int = 1 << 16
    num_connections: int = 0
    sockets: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, work: Callable[..., None], *sockets: socket.socket) -> None:
        """Do something with sockets in a thread that ends with the proxy."""
        thread = threading.Thread(target=work, args=sockets)
        self.threads.append(thread)
        thread.start()

    def forward(self, client: socket.socket) -> None:
        """Forward a connection in both directions until either side closes it."""
        cut_after = self.cut_after.pop(0) if self.cut_after else None
        stall_after = self.stall_after.pop(0) if self.stall_after else None
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port))
        except OSError:
            client.close()
            return
        self.sockets.append(server)
        self.start(self._pump_request, client, server)
        self._pump_response(server, client, cut_after, stall_after)

    @staticmethod
    def _pump_request(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while piece := client.recv(1 << 16):
                server.sendall(piece)
            server.shutdown(socket.SHUT_WR)

    def _pump_response(
        self, server: socket.socket, client: socket.socket, cut_after: int | None, stall_after: int | None
    ) -> None:
        num_sent = 0
        with suppress(OSError):
            while piece := server.recv(self.piece_bytes):
                if cut_after is not None and num_sent + len(piece) >= cut_after:
                    client.sendall(piece[: cut_after - num_sent])
                    break
                if stall_after is not None and num_sent + len(piece) >= stall_after:
                    client.sendall(piece[: stall_after - num_sent])
                    return
                client.sendall(piece)
                num_sent += len(piece)
                time.sleep(self.pause_s)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def proxied(target_port: int) -> Iterator[Proxy]:
    """Run a proxy while the context is open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(listener.getsockname()[1], target_port)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    proxy.num_connections += 1
                    proxy.sockets.append(client)
                    proxy.start(proxy.forward, client)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for opened in proxy.sockets:
                with suppress(OSError):  # it is closed already
                    opened.shutdown(socket.SHUT_RDWR)
            for each in proxy.threads:  # also those that others of them start meanwhile
                each.join()
            for opened in proxy.sockets:
                opened.close()
