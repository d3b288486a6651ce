"""Translate the errors that end a command to exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longcat_video_client import (
    IncompleteDownload,
    JobCancelled,
    JobFailed,
    LongCatVideoError,
    RateLimited,
    ServerError,
)


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
