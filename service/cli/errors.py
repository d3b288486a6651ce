"""How the command can end other than well, and with which exit code."""

from __future__ import annotations

from typing import ClassVar


class CliError(Exception):
    """The command ends here; the message says why."""

    exit_code: ClassVar[int]


class JobFailed(CliError):
    """The job ended without a video."""

    exit_code = 1


class Refused(CliError):
    """The service understood and said no."""

    exit_code = 3


class Unreachable(CliError):
    """The service did not answer, or cannot serve at the moment; trying again later can help."""

    exit_code = 4


class JobCancelled(CliError):
    """Somebody cancelled the job."""

    exit_code = 5


class Unusable(CliError):
    """A file here that cannot be read or written."""

    exit_code = 6
