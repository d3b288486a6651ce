"""Host names and origins: under which names browsers may reach the service, and which page sent a request.

A web page cannot forge `Host`, `Origin` or `Sec-Fetch-Site`, so they show whether a browser sends a request
for our own console or for a foreign page. Programs send neither `Origin` nor `Sec-Fetch-Site`.
"""

from __future__ import annotations

import ipaddress
from enum import Enum
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers

from service.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_ANY = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Sender(Enum):
    """What the headers of a request show about the page that caused it."""

    OUR_PAGE = "a page of this service"
    USER = "the address bar or a bookmark"
    FOREIGN_PAGE = "a page of another origin"
    UNKNOWN = "a program, or a browser that does not say"


class Origins:
    """The names and the origin of one service."""

    def __init__(self, settings: Settings) -> None:
        self._public = urlsplit(settings.public_url)
        configured = {name.strip().lower() for name in settings.allowed_hosts.split(",")}
        self._names = (configured | {settings.host.lower(), self._public.hostname or ""}) - {""}

    def is_listed(self, headers: Headers) -> bool:
        """Check that the `Host` is an address or a name of this service.

        DNS rebinding needs a name that the attacker controls, so addresses and loopback names always pass,
        and so does a request without `Host`, which no browser sends.
        """
        hosts = headers.getlist("Host")
        if not hosts or _ANY in self._names:
            return True
        name = _split(hosts[0]).hostname or ""
        return len(hosts) == 1 and (_is_loopback_or_address(name) or name.removesuffix(".") in self._names)

    def sender_of(self, headers: Headers) -> Sender:
        """Find out which page caused a request; another port of our own host is a foreign page, too."""
        site = headers.get("Sec-Fetch-Site")
        if site is not None:
            return {"same-origin": Sender.OUR_PAGE, "none": Sender.USER}.get(site, Sender.FOREIGN_PAGE)
        origin = headers.get("Origin")
        if origin is None:
            return Sender.UNKNOWN
        return Sender.OUR_PAGE if self._is_ours(origin, headers.get("Host", "")) else Sender.FOREIGN_PAGE

    def is_https(self, scheme: str, headers: Headers) -> bool:
        """Check that the browser uses TLS, also where a proxy ends it in front of `PUBLIC_URL`."""
        host = _split(headers.get("Host", ""))
        return scheme == "https" or (
            self._public.scheme == "https"
            and _port(host, "https") == _port(self._public, "https")
            and host.hostname == self._public.hostname
        )

    def _is_ours(self, origin: str, host: str) -> bool:
        try:
            given = urlsplit(origin)
        except ValueError:
            return False
        if given.scheme not in _DEFAULT_PORTS or not given.hostname:  # `null`, for one
            return False
        ours = _split(host)
        if given.hostname == ours.hostname and _port(given, given.scheme) == _port(ours, given.scheme):
            return True
        return (given.scheme, given.hostname, _port(given, given.scheme)) == (
            self._public.scheme,
            self._public.hostname,
            _port(self._public, self._public.scheme),
        )


def port_of(headers: Headers) -> int | None:
    """Return the port in `Host`, None if there is none."""
    return _port(_split(headers.get("Host", "")), "")


def _split(host: str) -> SplitResult:
    try:
        return urlsplit(f"//{host}")
    except ValueError:  # brackets that are not an IPv6 address
        return urlsplit("")


def _port(parts: SplitResult, scheme: str) -> int | None:
    try:
        return parts.port or _DEFAULT_PORTS.get(scheme)
    except ValueError:
        return None


def _is_loopback_or_address(name: str) -> bool:
    if name.removesuffix(".") == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
