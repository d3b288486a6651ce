"""Signing in to the console: the page shows its API key once and gets a cookie that no script can read."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from service.backend import Opened, Served
from service.errors import HostNotAllowed, Unauthorized
from service.keys.authentication import Credentials

router = APIRouter(include_in_schema=False)


class SessionView(BaseModel):
    """What the page may do."""

    model_config = ConfigDict(extra="forbid")

    owner: str
    may_order_high: bool


@router.get("/session")
async def get_session(backend: Served) -> SessionView:
    """Return in whose name the page asks; 401 if it has to sign in."""
    return SessionView(owner=backend.owner, may_order_high=backend.may_order_high)


@router.post("/session", status_code=204)
def sign_in(request: Request, backend: Opened, credentials: Credentials) -> Response:
    """Exchange an API key for a session cookie. Raise HostNotAllowed, LimitReached, Unauthorized."""
    auth = backend.authenticator
    if not auth.origins.is_listed(request.headers):
        raise HostNotAllowed(
            "the console needs this host name in LONGCAT_ALLOWED_HOSTS or LONGCAT_PUBLIC_URL"
        )
    key = credentials.credentials if credentials else ""
    owner = auth.keys.owner_of(key)
    if owner is None:
        raise Unauthorized("this API key is not valid")
    backend.job_store.client.count_request(owner)
    session_id = auth.sessions.open(key)
    response = Response(status_code=204)
    _set_cookie(request, response, backend, session_id)
    return response


@router.delete("/session", status_code=204)
def sign_out(request: Request, backend: Opened) -> Response:
    """End the session; without one there is nothing to do."""
    if session_id := request.cookies.get(backend.authenticator.cookie_name(request)):
        backend.authenticator.sessions.close(session_id)
    response = Response(status_code=204)
    _set_cookie(request, response, backend, "", max_age=0)
    return response


def _set_cookie(
    request: Request, response: Response, backend: Opened, value: str, max_age: int | None = None
) -> None:
    auth = backend.authenticator
    response.set_cookie(
        auth.cookie_name(request),
        value,
        max_age=max_age,
        path="/",
        secure=auth.origins.is_https(request.url.scheme, request.headers),
        httponly=True,
        samesite="strict",
    )
