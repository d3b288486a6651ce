"""Print, as JSON, the ports that processes offer beyond loopback: `python -m tests.attacks.sockets PID …`.

It has to run in the network namespace of these processes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from ipaddress import ip_address

import psutil


def exposed_ports(pids: Collection[int]) -> list[int]:
    """Return the TCP and UDP ports that these processes offer on any address but loopback's."""
    offered = [
        connection
        for connection in psutil.net_connections("inet")
        if connection.pid in pids and connection.status in {psutil.CONN_LISTEN, psutil.CONN_NONE}
    ]
    return sorted({socket.laddr.port for socket in offered if not _is_loopback(socket.laddr.ip)})


def _is_loopback(text: str) -> bool:
    address = ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


if __name__ == "__main__":
    sys.stdout.write(json.dumps(exposed_ports({int(pid) for pid in sys.argv[1:]})))
