"""A client of several API processes that remembers every answer that it should not have got."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

Job = dict[str, Any]

TIMEOUT_S = 60.0
POLL_S = 0.2
ENDED = {"succeeded", "failed", "cancelled"}


class Client:
    """Ask the first of `urls` that can be connected to. Safe between threads.

    Attributes:
        urls: the API processes; change it when one stops.
        server_errors: the requests that were answered with a status of 500 or more.
    """

    def __init__(self, api_key: str) -> None:
        self.urls: tuple[str, ...] = ()
        self.server_errors: list[str] = []
        self._http = httpx.Client(headers={"Authorization": f"Bearer {api_key}"}, timeout=TIMEOUT_S)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def submit(self, body: dict[str, Any]) -> Job:
        """Submit a job."""
        response = self.request("POST", "/generate", json=body)
        assert response.status_code == 202, response.text
        return dict(response.json())

    def job(self, job_id: str) -> Job:
        """Return a job."""
        response = self.request("GET", f"/jobs/{job_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def jobs(self) -> list[Job]:
        """Return all jobs."""
        response = self.request("GET", "/jobs", params={"limit": 100})
        assert response.status_code == 200, response.text
        return list(response.json()["jobs"])

    def video(self, job_id: str) -> bytes:
        """Return the video of a job."""
        response = self.request("GET", f"/jobs/{job_id}/video", follow_redirects=True)
        assert response.status_code == 200, response.text
        return response.content

    def is_ready(self, url: str) -> bool:
        """Check that an API process is up and sees a group that is ready."""
        try:
            return self._http.get(f"{url}/readyz?workers=1").status_code == 200
        except httpx.TransportError:
            return False

    def request(self, method: str, path: str, url: str | None = None, **options: Any) -> httpx.Response:
        """Send a request to `url`, or to any process."""
        last: httpx.TransportError | None = None
        for base in (url,) if url else self.urls:
            try:
                response = self._http.request(method, f"{base}{path}", **options)
            except httpx.TransportError as error:
                last = error
                continue
            if response.status_code >= 500:
                self.server_errors.append(f"{method} {base}{path}: {response.status_code} {response.text}")
            return response
        raise AssertionError(f"no API process answers {method} {path}") from last

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read jobs, lists, capability and metrics of every process all the time, in a thread."""
        stopping = threading.Event()
        thread = threading.Thread(target=self._read_until, args=(stopping.wait,))
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    def _read_until(self, wait: Callable[[float], bool]) -> None:
        while not wait(POLL_S):
            for url in self.urls:
                self._read_all(url)

    def _read_all(self, url: str) -> None:
        try:
            for path in ("/capability", "/metrics", "/v1/videos", "/jobs?status=queued"):
                self.request("GET", path, url)
            for job in self.request("GET", "/jobs?limit=5", url).json()["jobs"]:
                self.request("GET", f"/jobs/{job['id']}", url)
        except AssertionError:  # this process is being stopped
            pass
