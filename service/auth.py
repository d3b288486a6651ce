"""Who is asking: an API key in `Authorization: Bearer`, or nobody in particular where no key was ever made.

`service.backend` asks it for every request that touches jobs. Browsers load films and event streams without
headers, so the console page also keeps the key in a cookie, which counts for reading alone.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs.errors import LongCatError
from service.errors import Unauthorized
from service.keys import ApiKeys
from service.settings import Settings

COOKIE = "longcat_key"
EVERYBODY = ""  # the owner of jobs where there are no keys
_READING = {"GET", "HEAD"}

Credentials = Annotated[
    HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False, description="An API key."))
]


class OpenToAll(LongCatError):
    """The service would listen to other machines without asking for a key."""

    code = "open_to_all"


def owner_of(request: Request, credentials: HTTPAuthorizationCredentials | None, keys: ApiKeys) -> str:
    """In whose name the request is made. Raises Unauthorized, Unavailable."""
    key = credentials.credentials if credentials else None
    if key is None and request.method in _READING:
        key = request.cookies.get(COOKIE)
    owner = keys.owner_of(key) if key else None
    if owner is not None:
        return owner
    if is_exposed(request.app.state.backend.settings) or keys.any_made():
        raise Unauthorized(
            "this API key is not good" if key else "send an API key: Authorization: Bearer <key>"
        )
    return EVERYBODY


def is_exposed(settings: Settings) -> bool:
    """Whether other machines may reach the service, so that it must ask for keys."""
    return not (settings.allow_no_keys or _is_loopback(settings.host))


def check_exposure(settings: Settings, keys: ApiKeys) -> None:
    """Raises OpenToAll if nobody could use the service, since there is no key; Unavailable."""
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
