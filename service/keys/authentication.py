"""Authentication: an API key in `Authorization: Bearer`, the console's session cookie, or neither.

Without any key ever made, everybody may use a service that only this machine reaches. The session cookie is
for browsers, which load videos and event streams without other headers.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs.errors import LongCatError
from service.errors import Unauthorized
from service.http.origins import SAFE_METHODS, Origins, Sender, port_of
from service.keys import ApiKeys, Grant
from service.keys.sessions import Sessions
from service.settings import Settings

EVERYBODY = ""  # the owner of jobs where there are no keys
_COOKIE = "longcat_session"

Credentials = Annotated[
    HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False, description="An API key."))
]


class OpenToAll(LongCatError):
    """The service would listen to other machines without asking for a key."""

    code = "open_to_all"


@dataclass(frozen=True)
class Authenticator:
    """Decides in whose name a request is made, and what it may do."""

    settings: Settings
    keys: ApiKeys
    sessions: Sessions
    origins: Origins

    def authenticate(self, request: Request, credentials: HTTPAuthorizationCredentials | None) -> Grant:
        """Return what the request may do. Raise Unauthorized, Unavailable."""
        key = credentials.credentials if credentials else None
        grant = self.keys.grant_of(key) if key else self._session_grant(request)
        if grant is not None:
            return grant
        if self.requires_key():
            raise Unauthorized(
                "this API key is not valid" if key else "send an API key: Authorization: Bearer <key>"
            )
        return Grant(EVERYBODY, key_id=None, high_priority=True)

    def requires_key(self) -> bool:
        """Check that nobody is served without a key. Raise Unavailable."""
        return is_exposed(self.settings) or self.keys.any_made()

    def cookie_name(self, request: Request) -> str:
        """Return the name of the session cookie.

        It has the port in it: cookies ignore ports, and two services on one host must not overwrite each
        other's. Browsers set `__Host-` cookies only over TLS, and only for this very host.
        """
        port = port_of(request.headers)
        prefix = "__Host-" if self.origins.is_https(request.url.scheme, request.headers) else ""
        return f"{prefix}{_COOKIE}" + (f"_{port}" if port else "")

    def _session_grant(self, request: Request) -> Grant | None:
        """Return what the session cookie allows; browsers send it by themselves, so only our pages count."""
        session_id = request.cookies.get(self.cookie_name(request))
        if not session_id or not self.origins.is_listed(request.headers):
            return None
        sender = self.origins.sender_of(request.headers)
        if sender is Sender.OUR_PAGE or (
            request.method in SAFE_METHODS and sender is not Sender.FOREIGN_PAGE
        ):
            return self.sessions.grant_of(session_id)
        return None


def is_exposed(settings: Settings) -> bool:
    """Check that other machines may reach the service, so that it must ask for keys."""
    return not (settings.allow_no_keys or _is_loopback(settings.host))


def check_exposure(settings: Settings, keys: ApiKeys) -> None:
    """Raise OpenToAll if nobody could use the service, since there is no key; Unavailable."""
    if is_exposed(settings) and not keys.any_made():
        raise OpenToAll(
            f"LONGCAT_HOST is {settings.host}, so other machines can reach this service, but there is no API "
            "key: make one with `python -m service.keys create OWNER`, or set LONGCAT_API_KEY; "
            "LONGCAT_ALLOW_NO_KEYS=true serves everybody"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
