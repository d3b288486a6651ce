"""Which addresses are public, in every known notation."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from service.outgoing.addresses import HostNotPublic, is_public, resolve

PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *(
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ),
    *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1", "2001:0:1:2::3"),
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]

LOCAL_NAMES = [
    *("localhost", "127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "0"),
    *("::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "169.254.169.254", "10.0.0.1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_internet_addresses_are_public(address):
    assert is_public(ipaddress.ip_address(address))


SPECIAL_PURPOSE = [  # every row of both registries: IPv4, then IPv6
    *("0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32"),
    *("192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24"),
    *("192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32"),
    *("::1/128", "::/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32"),
    *("2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48"),
    *("2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48"),
    *("3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10"),
    *("224.0.0.0/4", "ff00::/8", "fec0::/10", "::/96", "::ffff:0:0:0/96"),  # in other registries
]
PUBLIC_NEIGHBOURS = [
    *("1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255"),
    *("128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255"),
    *("192.0.1.0", "192.0.1.255", "192.0.3.0", "192.31.195.255", "192.31.197.0", "192.52.192.255"),
    *("192.52.194.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0"),
    *("192.175.47.255", "192.175.49.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0"),
    *("203.0.112.255", "203.0.114.0", "223.255.255.255", "168.63.129.15", "168.63.129.17"),
    *(
        "2000::",
        "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:200::",
        "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
    ),
    *(
        "2001:db9::",
        "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2003::",
        "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
    ),
    *("2620:4f:8001::", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"),
    "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]


@pytest.mark.parametrize("row", SPECIAL_PURPOSE)
def test_special_purpose_networks_are_not_public_from_first_to_last_address(row):
    network = ipaddress.ip_network(row)
    assert not is_public(network[0])
    assert not is_public(network[-1])


@pytest.mark.parametrize("address", PUBLIC_NEIGHBOURS)
def test_addresses_beside_special_purpose_networks_are_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("prefix", ["::ffff:0:0", "64:ff9b::"])
@pytest.mark.parametrize("row", [row for row in SPECIAL_PURPOSE if "." in row])
def test_special_purpose_networks_are_not_public_inside_ipv6(prefix, row):
    for address in (ipaddress.ip_network(row)[0], ipaddress.ip_network(row)[-1]):
        assert not is_public(ipaddress.ip_address(int(ipaddress.ip_address(prefix)) + int(address)))


@pytest.mark.parametrize("address", ["192.0.0.192", "168.63.129.16"])
def test_addresses_of_cloud_platforms_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["2002:808:808::", "2001:0:808:808::", "64:ff9b:1::808:808", "::8.8.8.8", "::ffff:0:808:808"]
)
def test_public_addresses_in_tunnels_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("name", LOCAL_NAMES)
def test_other_spellings_of_localhost_are_refused(name):
    with pytest.raises(HostNotPublic):
        resolve(name, 80, allow_private=False)


def test_name_with_one_private_address_is_refused(monkeypatch):
    def answer(*_, **__):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with pytest.raises(HostNotPublic):
        resolve("two-faced.example", 80, allow_private=False)
    assert resolve("two-faced.example", 80, allow_private=True) == ["8.8.8.8", "10.0.0.1"]


@pytest.mark.parametrize("name", ["", ".", "no.such.host.invalid", "a" * 300, "a..b", "\x00"])
def test_unresolvable_name_is_refused(name):
    with pytest.raises(HostNotPublic):
        resolve(name, 80, allow_private=False)


def test_private_address_can_be_allowed():
    assert resolve("127.0.0.1", 80, allow_private=True) == ["127.0.0.1"]
