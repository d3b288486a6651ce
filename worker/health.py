"""Answer health probes of a worker over HTTP, without Redis and without the GPUs.

Each supervisor reports its state through a pipe whenever its event loop turns. The launcher keeps the last
report of each supervisor and serves two paths for Docker, kubelet or a load balancer:

- `/livez` is 503 if a restart may help: no group is well, each being stuck or broken.
- `/readyz` is 200 if a group takes jobs.

Both answer with the state of each group as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, get_args

ReportedState = Literal["starting", "ready", "busy", "full", "broken", "draining"]
"""The state of a group as its supervisor reports it. A group that loads the model is `starting`."""

GroupHealth = ReportedState | Literal["stuck", "down"]
"""`stuck`: the supervisor sent no report for `STUCK_S`. `down`: the launcher is about to start it again."""

REPORT_EVERY_S = 1.0
_REQUEST_TIMEOUT_S = 5.0
_READ_BYTES = 65536


class HealthReporter:
    """The supervisor's end of the pipe. A report is dropped if nobody reads, so it never blocks."""

    def __init__(self, pipe: int, clock: Callable[[], float] = time.monotonic) -> None:
        os.set_inheritable(pipe, False)
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._clock = clock
        self._state: ReportedState | None = None
        self._reported_at = 0.0

    def report(self, state: ReportedState) -> None:
        """Report a state that has changed, or was reported more than `REPORT_EVERY_S` ago."""
        now = self._clock()
        if state != self._state or now - self._reported_at >= REPORT_EVERY_S:
            self._state, self._reported_at = state, now
            with suppress(OSError):
                os.write(self._pipe, f"{state}\n".encode())


class JointReports:
    """Report the states of several event loops as one, each time that all of them have turned.

    If one of them is stuck, so is the process. It is busy if one of them is, else ready if one of them is. A
    loop that drains may end at any time, so the reports do not wait for it.
    """

    def __init__(self, num_loops: int, report: Callable[[ReportedState], None]) -> None:
        self._num_loops = num_loops
        self._report = report
        self._states: dict[int, ReportedState] = {}
        self._draining: set[int] = set()
        self._lock = threading.Lock()

    def report(self, loop: int, state: ReportedState) -> None:
        """Report the state of an event loop."""
        with self._lock:
            self._states[loop] = state
            if state == "draining":
                self._draining.add(loop)
            if len(self._states.keys() | self._draining) < self._num_loops:
                return
            reported = set(self._states.values())
            self._states.clear()
        self._report("busy" if "busy" in reported else "ready" if "ready" in reported else state)


class HealthReports:
    """The launcher's end of the pipe of one supervisor. `health` may be called in any thread."""

    def __init__(self, pipe: int, stuck_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._stuck_s = stuck_s
        self._clock = clock
        self._last: tuple[ReportedState, float] | None = None

    def read(self) -> None:
        """Read the reports that have arrived."""
        with suppress(BlockingIOError):
            for word in reversed(os.read(self._pipe, _READ_BYTES).decode().split()):
                for state in get_args(ReportedState):
                    if word == state:
                        self._last = state, self._clock()
                        return

    def health(self) -> GroupHealth:
        """Return the last reported state, or `stuck` if it is too old.

        A supervisor reports for the first time when it has reached Redis; until then it is `starting`.
        """
        if self._last is None:
            return "starting"
        state, reported_at = self._last
        return "stuck" if self._clock() - reported_at > self._stuck_s else state

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._pipe)


def is_alive(groups: Sequence[GroupHealth]) -> bool:
    """Return whether some group is well. One broken group must not end the jobs of the others."""
    return any(group not in {"stuck", "broken"} for group in groups)


def is_ready(groups: Sequence[GroupHealth]) -> bool:
    """Return whether some group takes jobs."""
    return any(group in {"ready", "busy"} for group in groups)


_CHECKS = {"/livez": is_alive, "/readyz": is_ready}


@contextmanager
def serve_health(host: str, port: int, groups: Callable[[], Sequence[GroupHealth]]) -> Iterator[None]:
    """Answer probes in a thread while the context is open. Raises OSError if the port cannot be used."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_TIMEOUT_S

        def do_GET(self) -> None:
            check = _CHECKS.get(self.path)
            if check is None:
                self.send_error(404)
                return
            found = groups()
            body = json.dumps({"groups": list(found)}).encode()
            self.send_response(200 if check(found) else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log no probes."""

    with Server((host, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
