"""Sign in to the console: the page presents its API key once and gets a cookie that no script can read."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from service.backend import AppBackend, Backend, CurrentBackend
from service.errors import HostNotAllowed, Unauthorized
from service.keys.authentication import Credentials

router = APIRouter(include_in_schema=False)


class SessionView(BaseModel):
    """In whose name the page is used, and what it may do."""

    model_config = ConfigDict(extra="forbid")

    owner: str
    high_priority_allowed: bool
    is_admin: bool


@router.get("/session")
async def get_session(backend: CurrentBackend) -> SessionView:
    """Return the current session. Answers 401 if the page has to sign in."""
    caller = backend.caller
    return SessionView(
        owner=caller.owner, high_priority_allowed=caller.high_priority_allowed, is_admin=caller.is_admin
    )


@router.post("/session", status_code=204)
def sign_in(request: Request, backend: AppBackend, credentials: Credentials) -> Response:
    """Exchange an API key for a session cookie. Raise HostNotAllowed, LimitReached, Unauthorized."""
    authenticator = backend.authenticator
    if not authenticator.origins.is_allowed_host(request.headers):
        raise HostNotAllowed(
            "the console needs this host name in LONGCAT_ALLOWED_HOSTS or LONGCAT_PUBLIC_URL"
        )
    key = credentials.credentials if credentials else ""
    caller = authenticator.keys.authenticate(key)
    if caller is None:
        raise Unauthorized("this API key is not valid")
    backend.job_store.client.count_request(caller.owner)
    session_id = authenticator.sessions.open(key)
    response = Response(status_code=204)
    _set_cookie(request, response, backend, session_id)
    return response


@router.delete("/session", status_code=204)
def sign_out(request: Request, backend: AppBackend) -> Response:
    """End the session, if there is one."""
    if session_id := request.cookies.get(backend.authenticator.cookie_name(request)):
        backend.authenticator.sessions.close(session_id)
    response = Response(status_code=204)
    _set_cookie(request, response, backend, "", max_age=0)
    return response


def _set_cookie(
    request: Request, response: Response, backend: Backend, value: str, max_age: int | None = None
) -> None:
    authenticator = backend.authenticator
    response.set_cookie(
        authenticator.cookie_name(request),
        value,
        max_age=max_age,
        path="/",
        secure=authenticator.origins.is_https(request.url.scheme, request.headers),
        httponly=True,
        samesite="strict",
    )
