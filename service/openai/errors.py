"""Errors as OpenAI's API words them, on the routes under `/v1/`. Called by `service.errors`.

Code, message, field and status are the same as on all other routes, except that a request which breaks a
rule is a 400 there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import InvalidInput, InvalidRequest, QualityNotAllowed

PREFIX = "/v1/"
RETRY_HEADER = "x-should-retry"  # obeyed by OpenAI's clients, which else try every 409 again
_RETRYABLE = {429, 503}
_RULE_BROKEN = {InvalidRequest.code, InvalidInput.code, QualityNotAllowed.code}

ErrorType = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class OpenAIError(BaseModel):
    """Why a request was refused."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field(description="For people.")
    type: ErrorType
    param: str | None = Field(description="Where in the request.")
    code: str = Field(description="Stable, for programs.")


class OpenAIErrorAnswer(BaseModel):
    """Every error under `/v1/` has this shape."""

    model_config = ConfigDict(extra="forbid")

    error: OpenAIError


def answer(
    status: int, code: str, message: str, field: str | None, headers: Mapping[str, str]
) -> JSONResponse:
    """An error as OpenAI's clients expect it."""
    status = 400 if code in _RULE_BROKEN else status
    error = OpenAIError(message=message, type=_type(status), param=field, code=code)
    retry = {RETRY_HEADER: str(status in _RETRYABLE).lower()}
    return JSONResponse({"error": error.model_dump()}, status_code=status, headers={**headers, **retry})


def _type(status: int) -> ErrorType:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
