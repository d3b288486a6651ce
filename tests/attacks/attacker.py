"""Hostile tenants: `python -m tests.attacks.attacker URL OWN_ADDRESS KEY …`, until standard input ends.

They run every attack at the same time, each with a key of its own as far as there are keys, and print, as
JSON, how often each was answered with which status.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from urllib.parse import urlsplit

import httpx

from tests.service.media import clip, encoded, picture

DRIP_S = 1.0
SLOW_ORDERS = 40
SLOW_HEADERS = 100
SLOW_BODIES = 40
IDLE_CONNECTIONS = 300
EVENT_STREAMS = 60
WEBHOOK_ORDERS = 24


@dataclass
class Attacker:
    """The attacks, each the body of a thread that repeats it until `stop` is set."""

    url: str
    address: str
    keys: Sequence[str]
    key_of: dict[str, str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Start every attack, wait for the end of standard input, and stop."""
        bomb = encoded(picture(7000, 7000), compress_level=9)
        large_clip = clip(num_frames=30, height=2304, width=4096)
        # it stands for other machines: it only gets the processor time that the service leaves
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        tarpit = self._tarpit()
        slow_image = {"prompt": "a cat", "image": {"url": f"http://{self.address}:{tarpit}/a.png"}}
        webhook = {"prompt": "a cat", "webhook_url": f"http://{self.address}:{tarpit}/hook"}
        attacks: list[tuple[int, str, Callable[[str], None]]] = [
            (SLOW_ORDERS, "slow image URL", lambda name: self._post(name, json=slow_image)),
            (8, "image bomb", lambda name: self._form(name, "image", bomb)),
            (2, "clip bomb", lambda name: self._form(name, "video", large_clip)),
            (4, "16 MiB of nested lists", lambda name: self._json(name, b"[" * (8 << 20) + b"]" * (8 << 20))),
            (2, "60 MiB of short lists", lambda name: self._json(name, _short_lists(60 << 20))),
            (SLOW_HEADERS, "dripping header", lambda name: self._drip(name, b"GET /jobs HTTP/1.1\r\nX: ")),
            (
                SLOW_BODIES,
                "dripping body",
                lambda name: self._drip(name, self._head(name, f"Content-Length: {1 << 20}")),
            ),
            (IDLE_CONNECTIONS, "idle connection", self._idle),
            (EVENT_STREAMS, "event stream", self._stream),
            (WEBHOOK_ORDERS, "webhook to a tarpit", lambda name: self._post(name, json=webhook)),
            (2, "two lengths", self._two_lengths),
            (2, "foreign page", self._foreign_page),
        ]
        self.key_of = dict(zip((name for _, name, _ in attacks), cycle(self.keys), strict=False))
        for count, name, attack in attacks:
            for _ in range(count):
                threading.Thread(target=self._repeat, args=(name, attack), daemon=True).start()
        sys.stdout.write("attacking\n")
        sys.stdout.flush()
        sys.stdin.read()
        self.stop.set()

    def _repeat(self, name: str, attack: Callable[[str], None]) -> None:
        while not self.stop.is_set():
            try:
                attack(name)
            except (OSError, httpx.HTTPError) as error:
                self._count(name, type(error).__name__)
            self.stop.wait(0.5)

    def _count(self, name: str, answer: object) -> None:
        with self.lock:
            self.answers[name][str(answer)] += 1

    def _post(self, name: str, **content: object) -> None:
        with self._client(name) as client:
            answer = client.post("/generate", **content)  # type: ignore[arg-type]
            self._count(name, answer.status_code)

    def _form(self, name: str, field_name: str, content: bytes) -> None:
        self._post(name, data={"prompt": "a cat"}, files={field_name: ("file", content)})

    def _json(self, name: str, nested: bytes) -> None:
        content = b'{"prompt": "a cat", "metadata": ' + nested + b"}"
        self._post(name, content=content, headers={"Content-Type": "application/json"})

    def _client(self, name: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key_of[name]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120.0, verify=False)  # builds no TLS

    def _head(self, name: str, *headers: str) -> bytes:
        common = ["POST /generate HTTP/1.1", "Host: localhost", f"Authorization: Bearer {self.key_of[name]}"]
        lines = [*common, "Content-Type: application/json", *headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def _connect(self) -> socket.socket:
        parts = urlsplit(self.url)
        return socket.create_connection((parts.hostname, parts.port), timeout=120.0)

    def _drip(self, name: str, head: bytes) -> None:
        """Send `head`, then a byte a second, until the service has had enough of it."""
        with self._connect() as connection:
            connection.sendall(head)
            while not self.stop.wait(DRIP_S):
                connection.sendall(b" ")
            self._count(name, "never ended")

    def _idle(self, name: str) -> None:
        with self._connect() as connection:
            self._count(name, "closed" if connection.recv(1000) else "closed without a word")

    def _two_lengths(self, name: str) -> None:
        with self._connect() as connection:
            connection.sendall(
                self._head(name, "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n"
            )
            answer = connection.recv(1000).split(b" ", 2)
            self._count(name, answer[1].decode() if len(answer) > 1 else "closed")

    def _stream(self, name: str) -> None:
        with self._client(name) as client:
            jobs = client.get("/jobs", params={"limit": 1}).json().get("jobs", [])
            if not jobs:
                return
            with client.stream("GET", f"/jobs/{jobs[0]['id']}/events") as answer:
                self._count(name, answer.status_code)
                for _ in answer.iter_raw():
                    if self.stop.is_set():
                        return

    def _foreign_page(self, name: str) -> None:
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        with self._client(name) as client:
            answer = client.post("/generate", files={"prompt": (None, "a cat")}, headers=headers)
            self._count(name, answer.status_code)

    def _tarpit(self) -> int:
        """Listen on a port that accepts and drips a header that never ends; return the port."""
        listening = socket.create_server((self.address, 0), backlog=1000)

        def drip(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                    while not self.stop.wait(DRIP_S):
                        connection.sendall(b" ")
                except OSError:
                    return

        def accept() -> None:
            while True:
                threading.Thread(target=drip, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return int(listening.getsockname()[1])


def _short_lists(size_bytes: int) -> bytes:
    return b"[" + b"[]," * (size_bytes // 3) + b"0]"


if __name__ == "__main__":
    url, address, *keys = sys.argv[1:]
    attacker = Attacker(url, address, keys)
    attacker.run()
    sys.stdout.write(json.dumps(attacker.answers))
