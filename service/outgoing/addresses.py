"""Decide which addresses the service may connect to on behalf of a client.

A name is resolved once, all its addresses are checked, and the connection is made to a checked address. So a
second answer from the name server cannot lead elsewhere (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_IPV4_INSIDE = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))  # mapped, NAT64
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # IANA assigns public addresses in no other part
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            # IANA's special-purpose registries, https://www.iana.org/assignments/iana-ipv4-special-registry
            # and …/iana-ipv6-special-registry; of IPv6 only what lies in 2000::/3. Entries that are globally
            # reachable are included: an anycast address leads to the nearest server, perhaps one of ours.
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "240.0.0.0/4",
            "2001::/23",  # with Teredo
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",
            "3fff::/20",
            # Not in the registries:
            "224.0.0.0/4",  # multicast
            "168.63.129.16/32",  # the host of a virtual machine in Azure
        ),
    )
)


class HostNotPublic(ValueError):
    """The host has an address that is not public, or no address."""


class HostNotResolved(HostNotPublic):
    """The host has no address, at least now."""


def is_public(address: IPAddress) -> bool:
    """Check that an address is public. An IPv4 address inside an IPv6 address is checked as IPv4.

    The list of networks is our own because `is_global` differs between versions of Python.
    """
    if address.version == 6:
        if any(address in network for network in _IPV4_INSIDE):
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _GLOBAL_UNICAST:
            return False
    return not any(address in network for network in _SPECIAL)


def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Return the addresses of a host.

    Raises HostNotPublic if one of them is not public (unless allowed), HostNotResolved if there is none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise HostNotResolved("the host cannot be resolved") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(is_public(_parse(address)) for address in addresses):
        raise HostNotPublic("the host is not in the public internet")
    return addresses


def _parse(address: str) -> IPAddress:
    return ipaddress.ip_address(address.partition("%")[0])
