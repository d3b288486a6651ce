"""Run a primary and a replica of Redis under one name that can be moved from one to the other.

The name is a symbolic link to the socket of the primary. Connections that are open when it moves stay where
they are, as with a Kubernetes Service or a DNS name.
"""

from __future__ import annotations

import signal
from pathlib import Path

from redis import Redis

from stack.redis_server import RedisProgram, RedisServer
from tests.servers import free_port
from tests.waiting import wait_until


class RedisNode(RedisServer):
    """One server, which also listens on a port of the loopback interface for its replica."""

    def __init__(self, folder: Path, program: RedisProgram) -> None:
        super().__init__(folder, program)
        self.port = free_port()

    @property
    def client(self) -> Redis:
        """Return a new client that does not wait for ever."""
        return Redis.from_url(self.url, socket_timeout=60)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _options(self) -> list[str]:
        replication = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
        return [*super()._options(), "--port", str(self.port), "--bind", "127.0.0.1", *replication]


class NamedRedis:
    """A primary and its replica. `name` is the path of the primary's socket, `url` its URL."""

    def __init__(self, folder: Path, program: RedisProgram) -> None:
        folder.mkdir()
        self.name = folder / "named.sock"
        self.primary = RedisNode(folder / "one", program)
        self.replica = RedisNode(folder / "other", program)

    @property
    def url(self) -> str:
        return f"unix://{self.name}"

    def start(self) -> None:
        self.primary.start()
        self._name_primary()
        self.replica.start()
        self._replicate()

    def stop(self) -> None:
        self.replica.stop()
        self.primary.stop()

    def kill_primary(self) -> None:
        self.primary.kill()

    def restart_primary(self) -> None:
        self.primary.start()

    def fail_over(self) -> None:
        """Promote the replica once it has every write, and move the name.

        The old primary becomes the replica of the new one.
        """
        with self.primary.client as primary, self.replica.client as replica:
            wait_until(lambda: _is_linked(replica))
            primary.client_pause(600_000, all=False)  # writes wait, and nothing is lost
            wait_until(lambda: _offset(primary) == _offset(replica))
            replica.replicaof("NO", "ONE")
            self.primary, self.replica = self.replica, self.primary
            self._name_primary()
            self._replicate()
            primary.client_unpause()

    def _name_primary(self) -> None:
        new = self.name.with_suffix(".new")
        new.symlink_to(self.primary.url.removeprefix("unix://"))
        new.replace(self.name)

    def _replicate(self) -> None:
        with self.replica.client as replica:
            replica.replicaof("127.0.0.1", self.primary.port)
            wait_until(lambda: _is_linked(replica))


def _is_linked(replica: Redis) -> bool:
    return bool(replica.info("replication").get("master_link_status") == "up")


def _offset(client: Redis) -> int:
    found = client.info("replication")
    return int(found.get("slave_repl_offset") or found["master_repl_offset"])
