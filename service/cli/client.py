"""A client of the service's HTTP API: request videos, wait for jobs, download results.

Requests that fail for a reason that may pass are repeated. Those that create a job carry an idempotency key,
so repeating them creates no second job.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from service.cli.errors import FileError, JobCancelled, JobFailed, RequestRefused, ServiceUnavailable

Job = dict[str, Any]
"""A job as the service returns it."""

ENDED = {"succeeded", "failed", "cancelled"}
_RETRY_PAUSE_S = 0.5
_FIRST_POLL_S = 0.2
_LONGEST_POLL_S = 2.0
_POLL_GROWTH = 1.2


@dataclass(frozen=True)
class ServiceClient:
    """A client of one service.

    Methods raise RequestRefused, and ServiceUnavailable if the service was unavailable for `patience_s`.
    """

    http: httpx.Client
    patience_s: float = 60.0

    @classmethod
    @contextmanager
    def connect(cls, url: str, api_key: str | None, patience_s: float) -> Iterator[Self]:
        """Yield a client of the service at `url`."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        with httpx.Client(base_url=url, headers=headers, timeout=60.0, follow_redirects=True) as http:
            yield cls(http, patience_s)

    def generate(
        self, fields: Mapping[str, Any], files: Mapping[str, Path], idempotency_key: str | None = None
    ) -> Job:
        """Request a video and return its job.

        Args:
            fields: the fields of `POST /generate`, except inputs.
            files: the files of the inputs, by field.
            idempotency_key: identifies the request over several calls; by default each call is a new one.

        Raises:
            FileError: a file cannot be read.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        if not files:
            return self._request("POST", "/generate", lambda: {"json": fields, "headers": headers})
        texts = [(name, _form_text(value)) for name, values in fields.items() for value in _each(values)]
        with ExitStack() as stack:
            opened = {name: stack.enter_context(_open(path)) for name, path in files.items()}

            def options() -> dict[str, Any]:
                for file in opened.values():
                    file.seek(0)
                parts = [(name, (None, text)) for name, text in texts]
                return {"files": [*parts, *opened.items()], "headers": headers}

            return self._request("POST", "/generate", options)

    def get_job(self, job_id: str) -> Job:
        """Return a job."""
        return self._request("GET", f"/jobs/{job_id}")

    def list_jobs(self, **query: str | int) -> list[Job]:
        """Return jobs, the newest first."""
        jobs: list[Job] = self._request("GET", "/jobs", lambda: {"params": query})["jobs"]
        return jobs

    def get_timeline(self, *job_ids: str) -> dict[str, Any]:
        """Return the timelines of several jobs as one trace."""
        timelines = [self._request("GET", f"/jobs/{job_id}/timeline") for job_id in job_ids]
        events = [event for timeline in timelines for event in timeline["traceEvents"]]
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def cancel(self, job_id: str) -> Job:
        """Cancel a job and return it."""
        return self._request("POST", f"/jobs/{job_id}/cancel")

    def wait_for_job(
        self, job_id: str, on_update: Callable[[Job], None], longest_pause_s: float = _LONGEST_POLL_S
    ) -> Job:
        """Wait until a job succeeds and return it.

        Args:
            job_id: the job to wait for.
            on_update: called with the job each time it is read.
            longest_pause_s: the pause between two reads grows up to this.

        Raises:
            JobFailed: the job failed.
            JobCancelled: the job was cancelled.
        """
        pause_s = min(_FIRST_POLL_S, longest_pause_s)
        while True:
            job = self.get_job(job_id)
            on_update(job)
            if job["status"] in ENDED:
                check_succeeded(job)
                return job
            time.sleep(pause_s)
            pause_s = min(pause_s * _POLL_GROWTH, longest_pause_s)

    def download(self, job: Job, path: Path) -> None:
        """Write the video of a finished job to `path`, completely or not at all. Raise FileError."""
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("wb") as file:
                self.receive(job, file.write)
            part.replace(path)
        except OSError as error:
            raise FileError(f"cannot write {path}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def receive(self, job: Job, write: Callable[[bytes], object]) -> None:
        """Pass the video of a finished job to `write` in chunks.

        Raises:
            ServiceUnavailable: the video did not arrive, or its checksum is wrong, which only the end shows.
        """
        digest = hashlib.sha256()
        try:
            with self.http.stream("GET", job["result"]["video_url"]) as response:
                _check(response)
                for chunk in response.iter_bytes():
                    digest.update(chunk)
                    write(chunk)
        except httpx.HTTPError as error:
            raise ServiceUnavailable(f"the video did not arrive: {error}") from error
        if digest.hexdigest() != job["result"]["sha256"]:
            raise ServiceUnavailable(f"the video of job {job['id']} did not arrive whole")

    def _request(self, method: str, path: str, options: Callable[[], dict[str, Any]] = dict) -> Job:
        """Return the JSON object in the response. Repeat the request for `patience_s` if that can help."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                response = self.http.request(method, path, **options())
                _check(response)
                return _object(response)
            except (httpx.TransportError, ServiceUnavailable) as error:
                if time.monotonic() > deadline:
                    raise ServiceUnavailable(f"{self.http.base_url}: {error}") from error
                time.sleep(_RETRY_PAUSE_S)


def check_succeeded(job: Job) -> None:
    """Raise JobFailed or JobCancelled if the job has ended in that way."""
    if job["status"] == "failed":
        raise JobFailed(f"job {job['id']} failed: {job['error']['message']} ({job['error']['code']})")
    if job["status"] == "cancelled":
        raise JobCancelled(f"job {job['id']} was cancelled")


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    message = _error_message(response)
    if response.status_code == 429 or response.is_server_error:
        raise ServiceUnavailable(message)
    raise RequestRefused(message)


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        found: dict[str, Any] = response.json()
    except ValueError as error:
        raise RequestRefused(f"{response.url} is no LongCat-Video service") from error
    return found


def _error_message(response: httpx.Response) -> str:
    response.read()
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return f"the service answered {response.status_code}"
    return f"{error['message']} ({error['code']})"


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield file


def _each(values: object) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _form_text(value: object) -> str:
    """Return a value as a form field: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
