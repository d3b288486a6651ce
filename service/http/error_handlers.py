"""Turn every way in which a request can fail into one JSON shape, and document it for OpenAPI.

Routes under `/v1/` answer in OpenAI's shape instead (`service.openai.errors`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jobs import errors
from jobs.connect import unavailable
from jobs.errors import LongCatError
from service.errors import BodyTooSlow, Busy, RangeNotSatisfiable, Unauthorized, invalid, status_of
from service.http.body_deadlines import RECEIVE_ERROR
from service.openai import errors as openai_errors

logger = logging.getLogger(__name__)

_MAX_ASKED_CHARACTERS = 200  # clients choose method and path
_CLIENT_CLOSED_REQUEST = 499  # the client is gone; this status is for logs and metrics
_RETRY_AFTER_S = {Busy: 5, errors.NoCapability: 15, errors.Unavailable: 5, errors.DiskFull: 60}


class ErrorBody(BaseModel):
    """The reason why a request failed."""

    model_config = ConfigDict(extra="forbid", title="Error")

    code: str = Field(description="Stable; meant for programs.", examples=["invalid_request"])
    message: str = Field(
        description="Meant for people.", examples=["num_frames: must be one more than a multiple of 4"]
    )
    field: str | None = Field(
        default=None, description="The part of the request at fault.", examples=["num_frames"]
    )


class ErrorAnswer(BaseModel):
    """The shape of every error."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorBody


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` argument of a route that may answer with these error statuses."""
    return {status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase} for status in statuses}


def install_error_handlers(app: FastAPI) -> None:
    """Register a handler for every kind of exception that can leave a route."""
    app.add_exception_handler(LongCatError, respond_to_error)
    app.add_exception_handler(ClientDisconnect, _respond_to_disconnect)
    app.add_exception_handler(RequestValidationError, _respond_to_invalid_parameter)
    app.add_exception_handler(HTTPException, _respond_to_http_exception)
    app.add_exception_handler(RedisError, _respond_to_redis_error)
    app.add_exception_handler(Exception, _respond_to_bug)


def respond_to_error(request: Request, error: Exception) -> JSONResponse:
    """Return the response to a request that ended with a LongCatError, with the headers it calls for."""
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
    return _error_response(request, status_of(type(error)), body, headers)


def _respond_to_disconnect(request: Request, _: Exception) -> Response:
    if isinstance(error := request.scope.get(RECEIVE_ERROR), LongCatError):
        return respond_to_error(request, error)
    logger.info("the client disconnected before its request was complete")
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


def _respond_to_invalid_parameter(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The place of a value in a list is left out: parameters are repeated, not numbered.
    problems = [{**problem, "loc": problem["loc"][1:2]} for problem in error.errors()]
    return respond_to_error(request, invalid(problems))  # type: ignore[arg-type]


def _respond_to_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Answer what Starlette raises itself: unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    asked = f"{request.method} {request.url.path}"[:_MAX_ASKED_CHARACTERS]
    message, headers = f"{asked}: {error.detail}", error.headers
    if error.status_code == 404:
        message = f"{asked}: there is no such path"
    elif error.status_code == 405:
        allowed = _allowed_methods(request)
        message, headers = f"{asked}: this path supports {allowed}", {"Allow": allowed}
    body = ErrorBody(code=phrase.lower().replace(" ", "_"), message=message)
    return _error_response(request, error.status_code, body, headers)


def _respond_to_redis_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of Redis that no route expected: 503 if Redis is at fault, else 500."""
    assert isinstance(error, RedisError)
    if (reason := unavailable(error)) is None:
        logger.error("Redis refused a command", exc_info=error)
        return _respond_to_bug(request, error)
    logger.warning("%s: %s", reason.message, error)
    return respond_to_error(request, reason)


def _respond_to_bug(request: Request, _: Exception) -> JSONResponse:
    request_id = request.scope["request_id"]  # Starlette logs the traceback under this id
    body = ErrorBody(code="internal", message=f"an error of ours; please quote request {request_id}")
    return _error_response(request, 500, body, {"X-Request-Id": request_id})


def _allowed_methods(request: Request) -> str:
    """Return all methods of a path. Starlette names only those of the first matching route.

    `/v1/videos/extensions` does not have the methods of `/v1/videos/{video_id}`, which matches as well.
    """
    routes = [route for route in request.app.state.routes if route.path_regex.match(request.url.path)]
    methods = {method for route in routes for method in route.methods if route.path == routes[0].path}
    return ", ".join(sorted(methods))


def _error_response(
    request: Request, status: int, error: ErrorBody, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    if request.url.path.startswith(openai_errors.PREFIX):
        return openai_errors.error_response(status, error.code, error.message, error.field, headers or {})
    content = {"error": error.model_dump(exclude_none=True)}
    return JSONResponse(content, status_code=status, headers=dict(headers or {}))
