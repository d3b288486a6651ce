"""Redis servers on TCP ports with any options, and three of them that three Sentinels watch."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.servers import free_port, redis_program
from tests.waiting import wait_until

SERVICE = "longcat"
NUM_SERVERS = 3
QUORUM = 2
DOWN_AFTER_MS = 5000  # with less, a busy machine causes failovers of its own
FAILOVER_TIMEOUT_S = 900.0  # Sentinels do nothing for 30 s after they were stalled for 2 s
_DURABLE = (
    "--appendonly",
    "yes",
    "--appendfsync",
    "no",  # a write reaches the kernel before its reply all the same, and survives the end of the process
    "--save",
    "",
    "--maxmemory-policy",
    "noeviction",
)


@dataclass
class RedisProcess:
    """A Redis server on a port of its own, with its data in `folder`. It may be killed and started again."""

    folder: Path
    options: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = self.launch()
        self.wait_until_it_answers()

    def launch(self) -> subprocess.Popen[bytes]:
        command = [redis_program().path, "--port", str(self.port), "--bind", "127.0.0.1", *_DURABLE]
        with (self.folder / "redis.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--dir", str(self.folder), *self.options], stdout=log, stderr=log
            )

    def wait_until_it_answers(self) -> None:
        with self.client() as client:
            wait_until(lambda: self._has_exited() or _answers(client))
        if self._has_exited():
            raise RuntimeError(f"the server did not start; see {self.folder}")

    def _has_exited(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def client(self) -> Redis:
        return Redis(port=self.port, socket_timeout=5.0)

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait()
            self.process = None


class SentinelProcess(RedisProcess):
    """A Sentinel that watches one primary."""

    def __init__(self, folder: Path, primary_port: int) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True)
        self.config = folder / "sentinel.conf"
        self.config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} {QUORUM}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 2000\nsentinel parallel-syncs {SERVICE} 2\n"
        )

    def launch(self) -> subprocess.Popen[bytes]:
        with (self.folder / "sentinel.log").open("ab") as log:
            command = [redis_program().path, str(self.config), "--sentinel"]
            return subprocess.Popen(command, stdout=log, stderr=log)


@dataclass
class Fleet:
    """Three servers, one of them the primary, and the Sentinels that watch them."""

    servers: list[RedisProcess]
    sentinels: list[SentinelProcess]

    @property
    def url(self) -> str:
        addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{addresses}/{SERVICE}"

    def primary(self) -> RedisProcess:
        """Return the server that the Sentinels name."""
        for sentinel in self.sentinels:
            with sentinel.client() as client, suppress(RedisError):
                address = client.sentinel_get_master_addr_by_name(SERVICE)
                if address:
                    return next(server for server in self.servers if server.port == int(address[1]))
        raise AssertionError("no Sentinel knows the primary")

    def num_replicas_in_sync(self) -> int:
        """Return how many replicas the primary feeds."""
        with self.primary().client() as client, suppress(RedisError):
            found = client.info("replication")
            if found["role"] == "master":
                replicas = [found[name] for name in found if name.startswith("slave") and name[5:].isdigit()]
                return sum(replica["state"] == "online" for replica in replicas)
        return 0

    def kill_primary(self) -> RedisProcess:
        """Kill the primary, wait until another server has taken over, and return the killed one."""
        killed = self.primary()
        killed.end(signal.SIGKILL)
        wait_until(
            lambda: self.primary() is not killed and self._accepts_writes(), FAILOVER_TIMEOUT_S, every_s=0.1
        )
        return killed

    def recover(self, killed: RedisProcess) -> None:
        """Start a killed server again, and wait until all replicas are in sync."""
        killed.start()
        wait_until(lambda: self.num_replicas_in_sync() == NUM_SERVERS - 1, every_s=0.1)

    def _accepts_writes(self) -> bool:
        with self.primary().client() as client, suppress(RedisError):
            return client.info("replication")["role"] == "master"
        return False


@contextmanager
def redis_fleet(folder: Path) -> Iterator[Fleet]:
    """Run three servers and three Sentinels, and yield them when they know each other."""
    with ExitStack() as parts:
        primary = parts.enter_context(RedisProcess(folder / "0", ("--repl-diskless-sync-delay", "0")))
        replicate = ("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0")
        replicas = [
            parts.enter_context(RedisProcess(folder / str(number), replicate))
            for number in range(1, NUM_SERVERS)
        ]
        sentinels = [
            parts.enter_context(SentinelProcess(folder / f"sentinel-{number}", primary.port))
            for number in range(NUM_SERVERS)
        ]
        fleet = Fleet([primary, *replicas], sentinels)
        wait_until(lambda: fleet.num_replicas_in_sync() == len(replicas))
        wait_until(lambda: all(_knows_all(sentinel, len(replicas)) for sentinel in sentinels), every_s=0.1)
        yield fleet


def _knows_all(sentinel: SentinelProcess, num_replicas: int) -> bool:
    with sentinel.client() as client:
        state = client.sentinel_masters()[SERVICE]
    return state["num-slaves"] == num_replicas and state["num-other-sentinels"] == NUM_SERVERS - 1


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except (RedisConnectionError, RedisTimeoutError):
        return False
    except RedisError:  # it asks for a password
        return True
