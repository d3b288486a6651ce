"""Which addresses the service may connect to on behalf of a client. Called by `service.fetch`.

A name is resolved once, every address it stands for is judged, and the connection is made to a judged
address, so that a second answer from the name server cannot lead elsewhere.
"""

from __future__ import annotations

import ipaddress
import socket

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class NotPublic(ValueError):
    """A host that stands for an address inside our own network, or for none."""


class NotResolved(NotPublic):
    """A host that stands for no address, at least now."""


def is_public(address: IPAddress) -> bool:
    """Whether an address lies in the open internet; an IPv4 address within an IPv6 one is what counts."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour or address.teredo or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """The addresses to connect to for a host, all of them judged.

    Raises NotPublic when one of them is private (unless allowed) or when there is none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotResolved("the host cannot be resolved") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(is_public(_parse(address)) for address in addresses):
        raise NotPublic("the host is not in the public internet")
    return addresses


def _parse(address: str) -> IPAddress:
    return ipaddress.ip_address(address.partition("%")[0])
