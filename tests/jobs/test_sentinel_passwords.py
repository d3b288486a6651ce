"""Sentinels and servers may have different passwords."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from jobs.connect import connect, redis_reached
from jobs.errors import Unavailable
from tests.redis_fleet import SERVICE, RedisProcess, SentinelProcess
from tests.waiting import wait_until

USER, PASSWORD, SENTINEL_PASSWORD = "longcat", "of-the-server", "of-the-sentinel"


class ServerWithUsers(RedisProcess):
    """A server that only `USER` may use."""

    def client(self) -> Redis:
        return Redis(port=self.port, username=USER, password=PASSWORD, socket_timeout=5.0)


class SentinelWithPassword(SentinelProcess):
    """A Sentinel that wants a password, and knows the one of the server."""

    def __init__(self, folder: Path, primary_port: int) -> None:
        super().__init__(folder, primary_port)
        config = self.config.read_text().replace(f"{primary_port} 2\n", f"{primary_port} 1\n")
        passwords = (
            f"requirepass {SENTINEL_PASSWORD}\n"
            f"sentinel auth-user {SERVICE} {USER}\nsentinel auth-pass {SERVICE} {PASSWORD}\n"
        )
        self.config.write_text(config + passwords)

    def client(self) -> Redis:
        return Redis(port=self.port, password=SENTINEL_PASSWORD, socket_timeout=5.0)


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelWithPassword]:
    folder = tmp_path_factory.mktemp("sentinel")
    users = folder / "users.acl"
    users.write_text(f"user default off\nuser {USER} on >{PASSWORD} ~* &* +@all\n")
    with (
        ServerWithUsers(folder / "server", ["--aclfile", str(users)]) as server,
        SentinelWithPassword(folder / "sentinel", server.port) as sentinel,
    ):
        with sentinel.client() as client:
            wait_until(lambda: "master" in client.sentinel_master(SERVICE)["flags"])
        yield sentinel


def url(port: int, password: str, sentinel_password: str) -> str:
    query = f"sentinel_password={sentinel_password}"
    return f"redis+sentinel://{USER}:{password}@127.0.0.1:{port}/{SERVICE}?{query}"


def test_both_passwords_are_given_in_the_url(sentinel):
    with connect(url(sentinel.port, PASSWORD, SENTINEL_PASSWORD), deadline_s=5.0) as redis:
        assert redis.set("key", "value")
        assert redis.acl_whoami() == USER


@pytest.mark.parametrize(
    ("password", "sentinel_password"), [("wrong", SENTINEL_PASSWORD), (PASSWORD, "wrong")]
)
def test_wrong_password_makes_redis_unavailable(sentinel, password, sentinel_password):
    redis = connect(url(sentinel.port, password, sentinel_password), deadline_s=0.5)
    with redis, pytest.raises(Unavailable), redis_reached():
        redis.set("key", "value")
