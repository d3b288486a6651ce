"""Authenticate requests by an API key in `Authorization: Bearer` or by the console's session cookie.

While no key was ever created, a service that only this machine can reach serves everybody. The session
cookie is for browsers, which cannot add headers when they load a video or open an event stream.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs.errors import LongCatError
from service.errors import Unauthorized
from service.http.origins import SAFE_METHODS, Initiator, Origins, port_of
from service.keys.api_keys import ApiKeys, Caller
from service.keys.sessions import Sessions
from service.settings import Settings

ANONYMOUS = ""
"""The owner of jobs that were requested without a key."""
EVERYBODY = Caller(ANONYMOUS, key_id=None, high_priority_allowed=True, is_admin=True)
"""The client of a service that requires no keys."""
_COOKIE = "longcat_session"

Credentials = Annotated[
    HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False, description="An API key."))
]


class ExposedWithoutKeys(LongCatError):
    """The service would listen to other machines without requiring an API key."""

    code = "open_to_all"


@dataclass(frozen=True)
class Authenticator:
    """Decide in whose name a request is made and what it may do."""

    settings: Settings
    keys: ApiKeys
    sessions: Sessions
    origins: Origins

    def authenticate(self, request: Request, credentials: HTTPAuthorizationCredentials | None) -> Caller:
        """Return the client that sent a request. Raise Unauthorized, Unavailable."""
        key = credentials.credentials if credentials else None
        caller = self.keys.authenticate(key) if key else self._authenticate_session(request)
        if caller is not None:
            return caller
        if self.requires_key():
            raise Unauthorized(
                "this API key is not valid" if key else "send an API key: Authorization: Bearer <key>"
            )
        return EVERYBODY

    def requires_key(self) -> bool:
        """Check that requests without a key are refused. Raise Unavailable."""
        return is_exposed(self.settings) or self.keys.any_exist()

    def cookie_name(self, request: Request) -> str:
        """Return the name of the session cookie.

        It contains the port, because cookies ignore ports and two services on one host must not overwrite
        each other's. Over TLS it starts with `__Host-`, which ties it to this host.
        """
        port = port_of(request.headers)
        prefix = "__Host-" if self.origins.is_https(request.url.scheme, request.headers) else ""
        return f"{prefix}{_COOKIE}" + (f"_{port}" if port else "")

    def _authenticate_session(self, request: Request) -> Caller | None:
        """Return the client of the session cookie, None without one.

        Browsers send cookies with requests of every page, so the cookie counts only for our own pages.
        """
        session_id = request.cookies.get(self.cookie_name(request))
        if not session_id or not self.origins.is_allowed_host(request.headers):
            return None
        initiator = self.origins.initiator(request.headers)
        if initiator is Initiator.SAME_ORIGIN or (
            request.method in SAFE_METHODS and initiator in {Initiator.USER, Initiator.UNKNOWN}
        ):
            return self.sessions.authenticate(session_id)
        return None


def is_exposed(settings: Settings) -> bool:
    """Check that other machines may reach the service, so that it must require keys."""
    return not (settings.allow_no_keys or _is_loopback(settings.host))


def check_exposure(settings: Settings, keys: ApiKeys) -> None:
    """Check that an exposed service has a key. Raise ExposedWithoutKeys, Unavailable."""
    if is_exposed(settings) and not keys.any_exist():
        raise ExposedWithoutKeys(
            f"LONGCAT_HOST is {settings.host}, so other machines can reach this service, but there is no API "
            "key: make one with `python -m service.keys create OWNER`, or set LONGCAT_API_KEY; "
            "LONGCAT_ALLOW_NO_KEYS=true serves everybody"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
