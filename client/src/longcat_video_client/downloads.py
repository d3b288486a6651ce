"""Download a video over as many connections as it takes, and write files completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Union

import httpx

from longcat_video_client import calls
from longcat_video_client.errors import ApiError, IncompleteDownload, RateLimited, ServiceUnavailable
from longcat_video_client.models import Job
from longcat_video_client.retries import Attempts, RetryPolicy

Destination = Union[str, "os.PathLike[str]", IO[bytes]]
"""A path, which is replaced when the video is complete, or a file opened for writing."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-")


class Download:
    """The state of one download: how much has arrived, and its checksum.

    Args:
        job: the job that made the video.
        policy: how long to retry without any bytes arriving.

    Raises:
        JobFailed: the job failed.
        JobCancelled: the job was cancelled.
        JobNotReady: the job has no video yet.
    """

    def __init__(self, job: Job, policy: RetryPolicy) -> None:
        self._job_id = job.id
        self._result = job.result_or_raise()
        self._attempts = Attempts(policy)
        self._digest = hashlib.sha256()
        self._num_received = 0
        self._num_to_skip = 0

    @property
    def is_complete(self) -> bool:
        """Return whether all bytes have arrived."""
        return self._num_received >= self._result.size_bytes

    def call(self) -> calls.Call:
        """Return the request for the bytes that are missing."""
        return calls.get_video(self._job_id, self._num_received)

    def opened(self, response: httpx.Response) -> None:
        """Begin to read a response: the bytes that are missing, or the whole file from its start.

        Raises:
            IncompleteDownload: the response announces another size, or leaves a gap.
        """
        found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        start = int(found[1]) if found and response.status_code == httpx.codes.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length", "")
        is_plain = "Content-Encoding" not in response.headers
        is_other_size = is_plain and length.isdecimal() and start + int(length) != self._result.size_bytes
        if start > self._num_received or is_other_size:
            raise self._incomplete()
        self._num_to_skip = self._num_received - start

    def received(self, chunk: bytes) -> bytes:
        """Return the part of a chunk that is new. Raise IncompleteDownload if there are too many bytes."""
        new = chunk[self._num_to_skip :]
        self._num_to_skip -= len(chunk) - len(new)
        self._num_received += len(new)
        self._digest.update(new)
        if new:
            self._attempts.succeeded()
        if self._num_received > self._result.size_bytes:
            raise self._incomplete()
        return new

    def delay_after(self, error: ApiError | None) -> float:
        """Return the seconds until the next request, after an error or a response that was too short.

        Raises:
            IncompleteDownload: the file in the storage is too short.
            ApiError: another request cannot help.
        """
        if error is None:
            error = ServiceUnavailable(f"the video of job {self._job_id} was cut off", code="unreachable")
        if error.status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise self._incomplete() from error
        if not isinstance(error, (RateLimited, ServiceUnavailable)):
            raise error
        return self._attempts.delay_after(error)

    def check(self) -> None:
        """Raise IncompleteDownload unless the video arrived with its checksum."""
        if not self.is_complete or self._digest.hexdigest() != self._result.sha256:
            raise self._incomplete()

    def _incomplete(self) -> IncompleteDownload:
        return IncompleteDownload(f"the video of job {self._job_id} did not arrive whole")


def check_destination(destination: Destination) -> None:
    """Check that the video can be saved, before it is made or downloaded.

    Raises:
        OSError: the path is a folder, or no file can be created beside it.
    """
    if not isinstance(destination, (str, os.PathLike)):
        return
    path = Path(destination)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    part = _part_of(path)
    try:
        part.touch(exist_ok=False)
        part.unlink()
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def opened_for_writing(destination: Destination) -> Iterator[IO[bytes]]:
    """Yield a file for the video. A path gets it when the context ends without an error, in one step.

    Raises:
        OSError: the file cannot be written.
    """
    if not isinstance(destination, (str, os.PathLike)):
        yield destination
        return
    path = Path(destination)
    part = _part_of(path)
    try:
        with part.open("xb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    """Return a new name beside the path, for the part of the video that has arrived."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
