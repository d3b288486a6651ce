"""Translate errors to exit codes, and go on after those of one of several jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from longcat_video_client import (
    IncompleteDownload,
    JobCancelled,
    JobFailed,
    LongCatVideoError,
    RateLimited,
    ServerError,
    ServiceUnavailable,
    Unauthorized,
)
from service.cli.json_output import print_json

T = TypeVar("T")


class FileError(Exception):
    """A local file cannot be read or written."""


EXIT_CODES: dict[type[Exception], int] = {
    JobFailed: 1,
    ServerError: 4,
    RateLimited: 4,
    IncompleteDownload: 4,
    JobCancelled: 5,
    FileError: 6,
    LongCatVideoError: 3,  # all others: the service refused the request
}


def exit_code_of(error: Exception) -> int:
    """Return the exit code of a command that ended with an error."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


@contextmanager
def file_errors(verb: str, path: Path | None = None) -> Iterator[None]:
    """Raise OSErrors as FileErrors while the context is open.

    Args:
        verb: says what failed: read or write.
        path: names the file, if it is not that of the OSError.
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot {verb} {path or error.filename}: {error.strerror}") from error


class SomeFailed(Exception):
    """A command failed for some of its jobs, and has reported each. `first` decides the exit code."""

    def __init__(self, first: LongCatVideoError | FileError) -> None:
        super().__init__(first)
        self.first = first


class JobErrors:
    """The errors of a command for several jobs, which goes on after each of them.

    They are printed when they happen, with `in_json` also to standard output. After an error that all jobs
    would have, such as that of a service that cannot be reached, the others are reported without an attempt.

    Attributes:
        reports: an object for each job that failed, with its id and its error.
    """

    def __init__(self, *, in_json: bool = False) -> None:
        self.reports: list[dict[str, Any]] = []
        self._in_json = in_json
        self._first: LongCatVideoError | FileError | None = None
        self._of_all: LongCatVideoError | None = None

    def attempt(self, job_id: str, action: Callable[[], T]) -> T | None:
        """Return the value of the action, or None after an error, which is reported as that of the job."""
        try:
            if self._of_all:
                raise self._of_all
            return action()
        except (LongCatVideoError, FileError) as error:
            if isinstance(error, (ServiceUnavailable, RateLimited, Unauthorized)):
                self._of_all = error
            self._first = self._first or error
            self._report(job_id, error)
            return None

    def raise_any(self) -> None:
        """Raise SomeFailed if there was an error."""
        if self._first:
            raise SomeFailed(self._first)

    def _report(self, job_id: str, error: LongCatVideoError | FileError) -> None:
        text = str(error)
        sys.stderr.write(f"{text}\n" if job_id in text else f"{job_id}: {text}\n")
        details = {"code": getattr(error, "code", None), "message": getattr(error, "message", text)}
        self.reports.append({"id": job_id, "error": details})
        if self._in_json:
            print_json(self.reports[-1])
