"""Errors that end a command, with their exit codes."""

from __future__ import annotations

from typing import ClassVar


class CliError(Exception):
    """The command fails. The message says why."""

    exit_code: ClassVar[int]


class JobFailed(CliError):
    """The job failed."""

    exit_code = 1


class RequestRefused(CliError):
    """The service refused the request."""

    exit_code = 3


class ServiceUnavailable(CliError):
    """The service did not answer, or cannot serve at the moment. Trying again later can help."""

    exit_code = 4


class JobCancelled(CliError):
    """The job was cancelled."""

    exit_code = 5


class FileError(CliError):
    """A local file cannot be read or written."""

    exit_code = 6
