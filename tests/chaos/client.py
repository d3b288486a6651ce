"""Send requests to several API processes, any of which may be down."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.chaos.orders import Body
from tests.decoded_video import decode

Job = dict[str, Any]
Frames = NDArray[np.uint8]

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ServerError:
    """An answer of 500 or more, and when the request was sent and answered, in seconds."""

    sent_at: float
    at: float
    status: int
    what: str


class Client:
    """A client of several API processes. Its methods return None while none of them answers."""

    def __init__(self, urls: list[str]) -> None:
        self._urls = itertools.cycle(urls)
        self._tries = range(len(urls))
        self._http = httpx.Client(timeout=TIMEOUT_S, follow_redirects=True)
        self.server_errors: list[ServerError] = []

    def order(self, body: Body, key: str) -> str | None:
        """Submit a job, and return its id. The same key gives the same job."""
        answer = self._ask("POST", "/generate", json=body, headers={"Idempotency-Key": key})
        if answer is None or answer.status_code == 409:  # a request with this key is still in progress
            return None
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> Job | None:
        """Return a job; {} if there is none with this id."""
        answer = self._ask("GET", f"/jobs/{job_id}")
        if answer is None:
            return None
        return {} if answer.status_code == 404 else dict(answer.json())

    def jobs(self) -> list[Job]:
        """Return all jobs."""
        found: list[Job] = []
        after: str | None = ""
        while after is not None:
            answer = self._ask("GET", "/jobs", params={"limit": 100, **({"after": after} if after else {})})
            assert answer is not None
            page = answer.json()
            found += page["jobs"]
            after = page.get("next")
        return found

    def cancel(self, job_id: str) -> bool | None:
        """Cancel a job. Return whether the cancel was accepted; False if the job had ended."""
        answer = self._ask("POST", f"/jobs/{job_id}/cancel")
        return None if answer is None else answer.status_code == 200

    def delete(self, job_id: str) -> None:
        answer = self._ask("DELETE", f"/jobs/{job_id}")
        assert answer is not None
        assert answer.status_code == 204, answer.text

    def frames(self, job_id: str) -> Frames:
        """Return the decoded frames of a job's video."""
        answer = self._ask("GET", f"/jobs/{job_id}/video")
        assert answer is not None
        assert answer.status_code == 200, answer.text
        return decode(answer.content).frames

    def answers(self, url: str, path: str) -> bool:
        """Return whether this process answers with status 200."""
        try:
            return self._http.get(f"{url}{path}").status_code == 200
        except httpx.HTTPError:
            return False

    def writes(self, url: str) -> bool:
        """Return whether this process can change something in Redis."""
        headers = {"Idempotency-Key": uuid4().hex}
        try:  # the key is reserved and released, although the order is refused
            answer = self._http.post(f"{url}/generate", json={"prompt": ""}, headers=headers)
        except httpx.HTTPError:
            return False
        return answer.status_code == 422

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response | None:
        for _ in self._tries:
            sent_at = time.time()
            try:
                answer = self._http.request(method, next(self._urls) + path, **request)
            except httpx.HTTPError:
                continue
            if answer.status_code < 500:
                return answer
            what = f"{method} {path}: {answer.text[:200]}"
            self.server_errors.append(ServerError(sent_at, time.time(), answer.status_code, what))
        return None
