"""What every error looks like over HTTP: one shape, one table of statuses. Installed by `service.app`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jobs import errors
from jobs.errors import LongCatError
from service.openai import errors as openai_errors

logger = logging.getLogger(__name__)


class UnusableInput(Exception):
    """A file that cannot be fetched or decoded; the message is fit to be shown to the client."""


class MalformedBody(LongCatError):
    """The body is not the JSON or the form that it says it is."""

    code = "malformed_body"


class BodyTooSlow(LongCatError):
    """The body of the request arrives too slowly."""

    code = "body_too_slow"


class Busy(LongCatError):
    """Other requests hold all of what this one needs; nothing was queued."""

    code = "busy"
    retryable = True


class UnsupportedMediaType(LongCatError):
    """The body is neither JSON nor a form."""

    code = "unsupported_media_type"


class BodyTooLarge(LongCatError):
    """The body is larger than the service takes."""

    code = "body_too_large"


class Unauthorized(LongCatError):
    """There is no API key with the request, or it is not good."""

    code = "unauthorized"


class CrossSiteRequest(LongCatError):
    """A web page of another origin sent a request that would change something."""

    code = "cross_site_request"


class PriorityNotAllowed(LongCatError):
    """The API key does not have the right to order with this priority."""

    code = "priority_not_allowed"


class HostNotAllowed(LongCatError):
    """The service does not answer under this host name."""

    code = "host_not_allowed"


class RangeNotSatisfiable(LongCatError):
    """The range begins behind the end of the file."""

    code = "range_not_satisfiable"

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the file has {size_bytes} bytes")
        self.size_bytes = size_bytes


STATUS: Mapping[type[LongCatError], int] = {
    MalformedBody: 400,
    Unauthorized: 401,
    CrossSiteRequest: 403,
    PriorityNotAllowed: 403,
    errors.JobNotFound: 404,
    errors.JobNotReady: 409,
    errors.JobEnded: 409,
    errors.KeyMissing: 410,
    BodyTooSlow: 408,
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
RECEIVE_ERROR = "receive_error"
"""Where a scope holds the error for which the rest of a body is not awaited."""
_CLIENT_CLOSED_REQUEST = 499  # which nobody receives: it is for log and metrics
_MAX_FIELD_CHARACTERS = 100  # names in the request are the client's
_RETRY_AFTER_S = {Busy: 5, errors.NoCapability: 15, errors.Unavailable: 5, errors.DiskFull: 60}


class ErrorBody(BaseModel):
    """Why a request was refused."""

    model_config = ConfigDict(extra="forbid", title="Error")

    code: str = Field(description="Stable, for programs.", examples=["invalid_request"])
    message: str = Field(description="For people.", examples=["num_frames: must be 4k + 1"])
    field: str | None = Field(default=None, description="Where in the request.", examples=["num_frames"])


class ErrorAnswer(BaseModel):
    """Every error has this shape."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorBody


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return {status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase} for status in statuses}


def documented_as_openai(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for a route of OpenAI's API."""
    model = openai_errors.OpenAIErrorAnswer
    return {status: {"model": model, "description": HTTPStatus(status).phrase} for status in statuses}


def error_response(
    request: Request, status: int, error: ErrorBody, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as it goes over the wire, in the shape that this path has."""
    if request.url.path.startswith(openai_errors.PREFIX):
        return openai_errors.answer(status, error.code, error.message, error.field, headers or {})
    content = {"error": error.model_dump(exclude_none=True)}
    return JSONResponse(content, status_code=status, headers=dict(headers or {}))


def status_of(kind: type[LongCatError]) -> int:
    """The HTTP status of an error class, or of its nearest ancestor in the table; 500 without one."""
    return next((STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS), 500)


def install_error_handlers(app: FastAPI) -> None:
    """Give every way in which a request can fail the one shape."""
    app.add_exception_handler(LongCatError, refused)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RedisConnectionError, _redis_away)
    app.add_exception_handler(RedisTimeoutError, _redis_away)
    app.add_exception_handler(Exception, _unhandled)


def invalid(problems: list[ErrorDetails]) -> errors.InvalidRequest:
    """What pydantic found wrong, as the error that we answer with: the first problem, and its field."""
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"])[:_MAX_FIELD_CHARACTERS]
    message = first["msg"].removeprefix("Value error, ")
    return errors.InvalidRequest(f"{field}: {message}" if field else message, field or None)


def refused(request: Request, error: Exception) -> JSONResponse:
    """Return the answer to a request that ended with an error of ours."""
    assert isinstance(error, LongCatError)
    headers = {}
    if kinds := [kind for kind in type(error).__mro__ if kind in _RETRY_AFTER_S]:
        headers["Retry-After"] = str(_RETRY_AFTER_S[kinds[0]])
    if isinstance(error, errors.LimitReached):
        headers |= {"Retry-After": str(error.retry_after_s), "X-Limit": error.limit}
    if isinstance(error, BodyTooSlow):
        headers["Connection"] = "close"
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    body = ErrorBody(code=error.code, message=error.message, field=error.field)
    return error_response(request, status_of(type(error)), body, headers)


def _disconnected(request: Request, _: Exception) -> Response:
    if isinstance(error := request.scope.get(RECEIVE_ERROR), LongCatError):
        return refused(request, error)
    logger.info("the client disconnected before its request was complete")
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


def _invalid_parameter(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [{**problem, "loc": problem["loc"][1:]} for problem in error.errors()]
    return refused(request, invalid(problems))  # type: ignore[arg-type]


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
    return error_response(request, error.status_code, ErrorBody(code=code, message=phrase), headers)


def _allowed(request: Request) -> str:
    """All methods of a path; the router only says those of the first route that has it."""
    routes = [route for route in request.app.state.routes if route.path_regex.match(request.url.path)]
    return ", ".join(sorted({method for route in routes for method in route.methods}))


def _redis_away(request: Request, error: Exception) -> JSONResponse:
    logger.warning("Redis cannot be reached: %s", error)
    return refused(request, errors.Unavailable("Redis cannot be reached; try again soon"))


def _unhandled(request: Request, _: Exception) -> JSONResponse:
    request_id = request.scope["request_id"]  # the traceback goes to the log
    body = ErrorBody(code="internal", message=f"an error of ours; please quote request {request_id}")
    return error_response(request, 500, body, {"X-Request-Id": request_id})
