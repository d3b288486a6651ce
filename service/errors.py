"""Errors that only the HTTP service raises, and the HTTP status of every error.

`service.http.error_handlers` turns them into responses. The first line of each docstring is the meaning that
`docs/errors.md` gives for the error's code.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_core import ErrorDetails

from jobs import errors
from jobs.broken_rules import rule_of
from jobs.errors import LongCatError

_MAX_FIELD_CHARACTERS = 100  # clients choose the names of unknown fields


class UnusableInput(Exception):
    """A file cannot be fetched or decoded. The message is shown to the client."""


class MalformedRequest(LongCatError):
    """The request is not valid HTTP."""

    code = "malformed_request"


class HeadTooSlow(LongCatError):
    """The head of the request arrives too slowly."""

    code = "head_too_slow"


class MalformedBody(LongCatError):
    """The body is not valid JSON, or not a valid form."""

    code = "malformed_body"


class BodyTooSlow(LongCatError):
    """The body of the request arrives too slowly."""

    code = "body_too_slow"


class Busy(LongCatError):
    """Other requests use all of the capacity that this request needs; nothing was queued."""

    code = "busy"
    retryable = True


class UnsupportedMediaType(LongCatError):
    """The body is neither JSON nor a form."""

    code = "unsupported_media_type"


class BodyTooLarge(LongCatError):
    """The body is larger than the service accepts."""

    code = "body_too_large"


class Unauthorized(LongCatError):
    """The request has no API key, or its key is not valid."""

    code = "unauthorized"


class CrossSiteRequest(LongCatError):
    """A web page of another origin sent a request that would change something."""

    code = "cross_site_request"


class PriorityNotAllowed(LongCatError):
    """The API key does not allow this priority."""

    code = "priority_not_allowed"


class DeadlineTooEarly(LongCatError):
    """The video cannot be expected by its deadline, and the request has `refuse_if_late`."""

    code = "deadline_too_early"


class HostNotAllowed(LongCatError):
    """The service does not answer under this host name."""

    code = "host_not_allowed"


class ModelNotFound(LongCatError):
    """No worker has a model of this name."""

    code = "model_not_found"


class PresetNotFound(LongCatError):
    """There is no such preset, or it belongs to another owner."""

    code = "preset_not_found"


class TooManyPresets(LongCatError):
    """The owner has as many presets as one may have."""

    code = "too_many_presets"


class PreconditionFailed(LongCatError):
    """The file is not the version that `If-Match` names."""

    code = "precondition_failed"


class RangeNotSatisfiable(LongCatError):
    """The range starts after the end of the file."""

    code = "range_not_satisfiable"

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the file has {size_bytes} bytes")
        self.size_bytes = size_bytes


STATUS: Mapping[type[LongCatError], int] = {
    MalformedRequest: 400,
    MalformedBody: 400,
    Unauthorized: 401,
    CrossSiteRequest: 403,
    PriorityNotAllowed: 403,
    errors.JobNotFound: 404,
    ModelNotFound: 404,
    PresetNotFound: 404,
    errors.JobNotReady: 409,
    errors.JobEnded: 409,
    DeadlineTooEarly: 409,
    TooManyPresets: 409,
    errors.UnreadableRecord: 409,
    errors.KeyMissing: 410,
    HeadTooSlow: 408,
    BodyTooSlow: 408,
    PreconditionFailed: 412,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    RangeNotSatisfiable: 416,
    HostNotAllowed: 421,
    errors.InvalidRequest: 422,
    errors.KeyReused: 422,
    errors.LimitReached: 429,
    Busy: 503,
    errors.NoCapability: 503,
    errors.Unavailable: 503,
    errors.DiskFull: 503,
}


def status_of(kind: type[LongCatError]) -> int:
    """Return the HTTP status of an error class: its own, that of its nearest base class, or 500."""
    return next((STATUS[base] for base in kind.__mro__ if base in STATUS), 500)


def invalid(problems: list[ErrorDetails]) -> errors.InvalidRequest:
    """Return the first validation problem that pydantic found as an InvalidRequest that names its field."""
    first = problems[0]
    path, rule = first["loc"], rule_of(first)
    if path[-1:] == ("[key]",):
        path, rule = path[:-2], f"each of its names {rule}"
    field = ".".join(map(str, path))[:_MAX_FIELD_CHARACTERS]
    return errors.InvalidRequest(f"{field}: {rule}" if field else rule, field or None)
