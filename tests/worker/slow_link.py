"""A link between two network namespaces on which packets take a while, and on which they can be held.

The delays of the kernel (`tc … netem`) are a module that many kernels lack. Here the ends of the link are TUN
devices, and a thread carries the packets from one to the other.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.attacks.namespaces import Namespace, can_make_namespaces, joined_namespaces

TUN = Path("/dev/net/tun")
MTU = 60_000  # few packets, as each costs time of this process
POLL_S = 0.05
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


@dataclass
class SlowLink:
    """Carry IP packets between two devices, each `latency_s` after it was sent. Use it as a context manager.

    `namespaces` has the two ends.
    """

    latency_s: float
    namespaces: tuple[Namespace, Namespace] = field(init=False)

    def __post_init__(self) -> None:
        self._ends: list[int] = []
        self._under_way: deque[tuple[float, int, bytes]] = deque()
        self._is_held = threading.Event()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="slow-link", daemon=True)

    def attach(self, first: str, second: str) -> None:
        """Make the two devices, which exist until the link is closed."""
        for name in (first, second):
            end = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
            self._ends.append(end)
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
            subprocess.run(["ip", "link", "set", name, "mtu", str(MTU)], check=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)

    def set_state(self, state: str) -> None:
        """Cut the link (`down`) or mend it (`up`)."""
        second = self.namespaces[1]
        subprocess.run(second.command("ip", "link", "set", second.interface, state), check=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no packet arrive. They all do afterwards."""
        self._is_held.set()
        try:
            yield
        finally:
            self._is_held.clear()

    @property
    def under_way_bytes(self) -> int:
        """Return the size of all packets that were sent and have not arrived."""
        return sum(len(packet) for _, _, packet in tuple(self._under_way))

    def _carry(self) -> None:
        first, second = self._ends
        while not self._is_closed.is_set():
            due_in_s = self._under_way[0][0] - time.monotonic() if self._under_way else POLL_S
            wait_s = POLL_S if self._is_held.is_set() else min(max(due_in_s, 0.0), POLL_S)
            for end in select.select(self._ends, [], [], wait_s)[0]:
                with suppress(OSError):  # its device is down
                    packet = os.read(end, MTU)
                    arrives_at = time.monotonic() + self.latency_s
                    self._under_way.append((arrives_at, second if end == first else first, packet))
            while (
                self._under_way and not self._is_held.is_set() and self._under_way[0][0] <= time.monotonic()
            ):
                _, end, packet = self._under_way.popleft()
                with suppress(OSError):  # its device is down: the packet is lost
                    os.write(end, packet)


def can_make_slow_link() -> bool:
    """Check that this process may make network namespaces and TUN devices."""
    return can_make_namespaces() and os.access(TUN, os.R_OK | os.W_OK)


@contextmanager
def slow_link(latency_s: float) -> Iterator[SlowLink]:
    """Join two namespaces by a slow link; remove all at the end."""
    link = SlowLink(latency_s)
    with joined_namespaces(link.attach) as link.namespaces, link:
        yield link
