"""Speaks to the service for `service.cli`: order, follow, fetch, and no more.

A request that may not have come through is sent again, with the same idempotency key where it creates
something, so that a short outage neither ends the command nor makes a second job.
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

from service.cli.errors import JobCancelled, JobFailed, Refused, Unreachable, Unusable

Job = dict[str, Any]

ENDED = {"succeeded", "failed", "cancelled"}
_PAUSE_S = 0.5
_FIRST_POLL_S = 0.2
_LONGEST_POLL_S = 2.0


@dataclass(frozen=True)
class Client:
    """One service. Methods raise Refused, and Unreachable when it was away for longer than `patience_s`."""

    http: httpx.Client
    patience_s: float = 60.0

    @classmethod
    @contextmanager
    def of(cls, url: str, api_key: str | None, patience_s: float) -> Iterator[Self]:
        """A client of the service at `url`."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        with httpx.Client(base_url=url, headers=headers, timeout=60.0, follow_redirects=True) as http:
            yield cls(http, patience_s)

    def order(self, fields: Mapping[str, Any], files: Mapping[str, Path], key: str | None = None) -> Job:
        """Order a video; `fields` are those of `POST /generate`, `files` its inputs. Raises Unusable."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        if not files:
            return self._job("POST", "/generate", lambda: {"json": fields, "headers": headers})
        texts = [(name, _in_form(value)) for name, values in fields.items() for value in _each(values)]
        with ExitStack() as opened:
            readers = {name: opened.enter_context(_reader(path)) for name, path in files.items()}

            def body() -> dict[str, Any]:
                for reader in readers.values():
                    reader.seek(0)
                parts = [(name, (None, text)) for name, text in texts]
                return {"files": [*parts, *readers.items()], "headers": headers}

            return self._job("POST", "/generate", body)

    def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return self._job("GET", f"/jobs/{job_id}")

    def jobs(self, **query: str | int) -> list[Job]:
        """Jobs, the newest first."""
        found: list[Job] = self._job("GET", "/jobs", lambda: {"params": query})["jobs"]
        return found

    def timeline(self, *job_ids: str) -> dict[str, Any]:
        """What was done for these jobs, and when, in one trace."""
        found = [self._job("GET", f"/jobs/{job_id}/timeline")["traceEvents"] for job_id in job_ids]
        return {"traceEvents": [event for events in found for event in events], "displayTimeUnit": "ms"}

    def cancel(self, job_id: str) -> Job:
        """Cancel a job."""
        return self._job("POST", f"/jobs/{job_id}/cancel")

    def follow(
        self, job_id: str, show: Callable[[Job], None], longest_pause_s: float = _LONGEST_POLL_S
    ) -> Job:
        """Wait until a job succeeds and return it.

        Args:
            job_id: The job to wait for.
            show: Called with the job each time it is read.
            longest_pause_s: The pause between two reads grows to this, in seconds.

        Raises:
            JobFailed: The job failed.
            JobCancelled: The job was cancelled.
        """
        pause_s = min(_FIRST_POLL_S, longest_pause_s)
        while True:
            job = self.job(job_id)
            show(job)
            if job["status"] in ENDED:
                return succeeded(job)
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, longest_pause_s)

    def fetch(self, job: Job, path: Path) -> None:
        """Write the video of a job that succeeded to `path`, whole or not at all. Raises Unusable."""
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("wb") as file:
                digest = self._receive(job["result"]["video_url"], file.write)
            if digest != job["result"]["sha256"]:
                raise Unreachable(f"the video of job {job['id']} did not arrive whole")
            part.replace(path)
        except OSError as error:
            raise Unusable(f"cannot write {path}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def _receive(self, url: str, write: Callable[[bytes], object]) -> str:
        digest = hashlib.sha256()
        try:
            with self.http.stream("GET", url) as answer:
                _check(answer)
                for piece in answer.iter_bytes():
                    digest.update(piece)
                    write(piece)
        except httpx.HTTPError as error:
            raise Unreachable(f"the video did not arrive: {error}") from error
        return digest.hexdigest()

    def _job(self, method: str, path: str, body: Callable[[], dict[str, Any]] = dict) -> Job:
        """The JSON object that is answered, asking again while that can help."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                answer = self.http.request(method, path, **body())
                _check(answer)
                return _object(answer)
            except (httpx.TransportError, Unreachable) as error:
                if time.monotonic() > deadline:
                    raise Unreachable(f"{self.http.base_url}: {error}") from error
                time.sleep(_PAUSE_S)


def succeeded(job: Job) -> Job:
    """The same job. Raises JobFailed or JobCancelled if it ended so."""
    if job["status"] == "failed":
        raise JobFailed(f"job {job['id']} failed: {job['error']['message']} ({job['error']['code']})")
    if job["status"] == "cancelled":
        raise JobCancelled(f"job {job['id']} was cancelled")
    return job


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    message = _message(answer)
    if answer.status_code == 429 or answer.is_server_error:
        raise Unreachable(message)
    raise Refused(message)


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found: dict[str, Any] = answer.json()
    except ValueError as error:
        raise Refused(f"{answer.url} is no LongCat-Video service") from error
    return found


def _message(answer: httpx.Response) -> str:
    answer.read()
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return f"the service answered {answer.status_code}"
    return f"{error['message']} ({error['code']})"


@contextmanager
def _reader(path: Path) -> Iterator[Any]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise Unusable(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield file


def _each(values: object) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _in_form(value: object) -> str:
    """Texts as they are, everything else as in JSON."""
    return value if isinstance(value, str) else json.dumps(value)
