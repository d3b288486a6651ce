"""Which addresses are in the public internet, in every disguise that we know."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from service.addresses import NotPublic, is_public, resolve

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
def test_an_address_of_our_own_network_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("name", LOCAL_NAMES)
def test_a_disguised_local_host_is_refused(name):
    with pytest.raises(NotPublic):
        resolve(name, 80, allow_private=False)


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    def answer(*_, **__):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with pytest.raises(NotPublic):
        resolve("two-faced.example", 80, allow_private=False)
    assert resolve("two-faced.example", 80, allow_private=True) == ["8.8.8.8", "10.0.0.1"]


@pytest.mark.parametrize("name", ["", ".", "no.such.host.invalid", "a" * 300, "a..b", "\x00"])
def test_a_name_that_stands_for_nothing_is_refused(name):
    with pytest.raises(NotPublic):
        resolve(name, 80, allow_private=False)


def test_a_private_address_may_be_allowed():
    assert resolve("127.0.0.1", 80, allow_private=True) == ["127.0.0.1"]
