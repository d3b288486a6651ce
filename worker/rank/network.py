"""Find out how this machine reaches another one: by which address, and through which interface."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.settings import Endpoint

_SIOCGIFADDR = 0x8915


def local_address(endpoint: Endpoint) -> str:
    """Return the address from which this machine reaches an endpoint. Raises OSError."""
    family, address = resolve(endpoint)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing
        probe.connect(address)
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """Return the name of the network interface that has this address. Raises OSError if none has."""
    for name in (name for _, name in socket.if_nameindex()):
        if address in _addresses(name):
            return name
    raise OSError(
        f"no network interface has the address {address}: set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    )


def _addresses(interface: str) -> set[str]:
    """Return the addresses of an interface: the first IPv4 address, and all of IPv6."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        request = struct.pack("256s", interface.encode())
        found.add(socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24]))
    with suppress(OSError):  # no IPv6
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, name = line.split()
            if name == interface:
                found.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found


def resolve(endpoint: Endpoint) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the address of an endpoint, as a socket takes them. Raises OSError."""
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    family, _, _, _, address = found[0]
    return family, address
