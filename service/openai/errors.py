"""Errors in the shape of OpenAI's API, for the routes under `/v1/`.

Code, message, field and status are those of all other routes, with one exception: a request that breaks a
rule is answered with 400 instead of 422.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import InvalidInput, InvalidRequest, QualityNotAllowed

PREFIX = "/v1/"
RETRY_HEADER = "x-should-retry"  # without it, OpenAI's clients retry every 409
_RETRYABLE = {429, 503}
_RULE_BROKEN = {InvalidRequest.code, InvalidInput.code, QualityNotAllowed.code}

ErrorType = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class OpenAIError(BaseModel):
    """The reason why a request failed."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field(description="Meant for people.")
    type: ErrorType
    param: str | None = Field(description="The part of the request at fault.")
    code: str = Field(description="Stable; meant for programs.")


class OpenAIErrorAnswer(BaseModel):
    """The shape of every error under `/v1/`."""

    model_config = ConfigDict(extra="forbid")

    error: OpenAIError


def openai_error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` argument of an OpenAI route that may answer with these error statuses."""
    return {
        status: {"model": OpenAIErrorAnswer, "description": HTTPStatus(status).phrase} for status in statuses
    }


def error_response(
    status: int, code: str, message: str, field: str | None, headers: Mapping[str, str]
) -> JSONResponse:
    """Return an error as OpenAI's clients expect it."""
    status = 400 if code in _RULE_BROKEN else status
    error = OpenAIError(message=message, type=_type(status), param=field, code=code)
    retry = {RETRY_HEADER: str(status in _RETRYABLE).lower()}
    return JSONResponse({"error": error.model_dump()}, status_code=status, headers={**headers, **retry})


def _type(status: int) -> ErrorType:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
