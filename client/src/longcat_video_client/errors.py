"""Define the errors of the client, and translate error responses of the service to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import httpx


class LongCatVideoError(Exception):
    """Base class of all errors that this package raises on its own.

    Attributes:
        job_id: the job that the error is about, None if there is none.
    """

    job_id: str | None = None


class ApiError(LongCatVideoError):
    """The service refused a request.

    Attributes:
        status: the HTTP status, None if there was no response.
        code: stable; meant for programs. `docs/errors.md` of the service lists the codes.
        message: meant for people.
        field: the part of the request at fault, if there is one.
        retry_after_s: the seconds after which the service asks to be called again.
        request_id: with which the operator finds the request in the logs.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{message} ({code})")
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class InvalidRequest(ApiError):
    """The request breaks a rule, which `field` and `message` name; 400, 413, 415 or 422."""


class Unauthorized(ApiError):
    """The API key is missing or not valid; 401."""


class PermissionDenied(ApiError):
    """The API key does not allow this; 403."""


class NotFound(ApiError):
    """There is no such job or preset, or it belongs to another owner; 404."""


class Conflict(ApiError):
    """The job is in a state in which this is not possible, or there are too many presets; 409."""


class RateLimited(ApiError):
    """A limit was reached, which the message names; 429."""


class ServerError(ApiError):
    """The service failed; 5xx."""


class ServiceUnavailable(ServerError):
    """The service cannot be reached, or cannot serve now; 502, 503, 504, 520 to 524 or no response."""


class UnexpectedReply(LongCatVideoError):
    """There is no usable response: check the URL, the API key and proxies."""


class JobFailed(LongCatVideoError):
    """The job failed. `retryable` says whether the same request may succeed later."""

    def __init__(self, job_id: str, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(f"job {job_id} failed: {message} ({code})")
        self.job_id = job_id
        self.code = code
        self.message = message
        self.retryable = retryable


class JobCancelled(LongCatVideoError):
    """The job was cancelled."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} was cancelled")
        self.job_id = job_id


class JobNotReady(LongCatVideoError):
    """The job has no result, or none yet."""

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"job {job_id} is {status} and has no video")
        self.job_id = job_id
        self.status = status


class Timeout(LongCatVideoError):
    """The job did not end within the time that the caller set. It continues."""

    def __init__(self, job_id: str, timeout_s: float) -> None:
        super().__init__(f"job {job_id} did not end within {timeout_s:g} s; it continues")
        self.job_id = job_id


class IncompleteDownload(LongCatVideoError):
    """The video that arrived does not have the size or the checksum that the job states."""


class InvalidWebhook(LongCatVideoError):
    """A webhook has no valid signature, or is too old. Do not trust it."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
    502: ServiceUnavailable,
    503: ServiceUnavailable,
    504: ServiceUnavailable,
    **dict.fromkeys(range(520, 525), ServiceUnavailable),  # Cloudflare: the service cannot be reached
}


def checked(response: httpx.Response) -> httpx.Response:
    """Return a response whose status is a success. The body of any other must have been read.

    Raises:
        ApiError: the status is 4xx or 5xx.
        UnexpectedReply: the status is a redirect that is not followed.
    """
    if response.is_success:
        return response
    if not response.is_error:
        raise UnexpectedReply(f"{response.url} is redirected to {response.headers.get('Location')}")
    status = response.status_code
    kind = _BY_STATUS.get(status, ServerError if response.is_server_error else ApiError)
    code, message, field = _read_error(response)
    raise kind(
        message,
        code=code,
        status=status,
        field=field,
        retry_after_s=retry_after_s(response),
        request_id=response.headers.get("X-Request-Id"),
    )


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise the errors of httpx as errors of this package while the context is open.

    Raises:
        ServiceUnavailable: there was no response, or it was cut off. Another attempt may help.
        UnexpectedReply: the request cannot be sent, or the response cannot be read.
    """
    try:
        yield
    except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as error:
        raise ServiceUnavailable(_describe(error), code="unreachable") from error
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise UnexpectedReply(_describe(error)) from error


@contextmanager
def errors_of_job(job_id: str) -> Iterator[None]:
    """Give each exception that leaves the context the attribute `job_id`, and a note (from Python 3.11 on).

    The caller of `generate` has seen no job yet, and could not find it without its id.
    """
    try:
        yield
    except BaseException as error:
        vars(error)["job_id"] = job_id
        if sys.version_info >= (3, 11) and job_id not in str(error):
            error.add_note(f"submitted as job {job_id}")
        raise


def retry_after_s(response: httpx.Response) -> float | None:
    """Return the seconds that `Retry-After` asks to wait, None if it is absent or malformed."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return max(0.0, (at - datetime.now(timezone.utc)).total_seconds())


def _read_error(response: httpx.Response) -> tuple[str, str, str | None]:
    """Return code, message and field. Proxies send errors of another form, which have none."""
    try:
        error = response.json()["error"]
        return str(error["code"]), str(error["message"]), error.get("field")
    except (ValueError, KeyError, TypeError, AttributeError):
        phrase = response.reason_phrase or "an error"
        return f"http_{response.status_code}", f"the service answered {phrase}", None


def _describe(error: httpx.RequestError | httpx.InvalidURL) -> str:
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.RequestError) and error._request:  # noqa: SLF001 - the property raises if absent
        return f"{error.request.url}: {reason}"
    return reason
