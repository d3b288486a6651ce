from __future__ import annotations

from pathlib import Path

import pytest

from worker.rank.network import interface_of, local_address
from worker.settings import Endpoint


def test_interface_is_that_of_the_route_to_node_0():
    assert interface_of(local_address(Endpoint(host="127.0.0.1", port=29500))) == "lo"
    with pytest.raises(OSError, match=r"no network interface has the address 192\.0\.2\.1"):
        interface_of("192.0.2.1")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_interface_of_an_ipv6_address_is_found():
    assert interface_of(local_address(Endpoint(host="::1", port=29500))) == "lo"
