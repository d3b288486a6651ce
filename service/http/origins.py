"""Decide from a request's headers under which host name it came and which kind of page caused it.

A web page cannot forge `Host`, `Origin` or `Sec-Fetch-Site`, so they show whether a browser sends a request
for our own console or for another page. Programs send neither `Origin` nor `Sec-Fetch-Site`.
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


class Initiator(Enum):
    """The cause of a request, as its headers show it."""

    SAME_ORIGIN = "a page of this service"
    USER = "the address bar or a bookmark"
    TRUSTED_ORIGIN = "a page of an origin in CORS_ORIGINS"
    CROSS_ORIGIN = "a page of another origin"
    UNKNOWN = "a program, or a browser that does not say"


class Origins:
    """The host names and the origin of this service."""

    def __init__(self, settings: Settings) -> None:
        self._public = urlsplit(settings.public_url)
        configured = {name.strip().lower() for name in settings.allowed_hosts.split(",")}
        self._trusted = frozenset(settings.trusted_origins)
        self._names = (configured | {settings.host.lower(), self._public.hostname or ""}) - {""}

    def is_allowed_host(self, headers: Headers) -> bool:
        """Check that `Host` is an IP address, a loopback name or a configured name of this service.

        DNS rebinding needs a name that the attacker controls, so addresses and loopback names are always
        allowed. So is a request without `Host`, which no browser sends.
        """
        hosts = headers.getlist("Host")
        if not hosts or _ANY in self._names:
            return True
        name = _split(hosts[0]).hostname or ""
        return len(hosts) == 1 and (_is_loopback_or_address(name) or name.removesuffix(".") in self._names)

    def initiator(self, headers: Headers) -> Initiator:
        """Return what caused a request. A page on another port of our own host is cross-origin."""
        if headers.get("Origin") in self._trusted:
            return Initiator.TRUSTED_ORIGIN
        site = headers.get("Sec-Fetch-Site")
        if site is not None:
            known = {"same-origin": Initiator.SAME_ORIGIN, "none": Initiator.USER}
            return known.get(site, Initiator.CROSS_ORIGIN)
        origin = headers.get("Origin")
        if origin is None:
            return Initiator.UNKNOWN
        is_ours = self._is_our_origin(origin, headers.get("Host", ""))
        return Initiator.SAME_ORIGIN if is_ours else Initiator.CROSS_ORIGIN

    def is_https(self, scheme: str, headers: Headers) -> bool:
        """Check that the browser uses TLS, possibly up to a proxy that serves `PUBLIC_URL`."""
        host = _split(headers.get("Host", ""))
        return scheme == "https" or (
            self._public.scheme == "https"
            and _port(host, "https") == _port(self._public, "https")
            and host.hostname == self._public.hostname
        )

    def _is_our_origin(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:  # such as `null`
            return False
        ours = _split(host)
        if parts.hostname == ours.hostname and _port(parts, parts.scheme) == _port(ours, parts.scheme):
            return True
        return (parts.scheme, parts.hostname, _port(parts, parts.scheme)) == (
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
