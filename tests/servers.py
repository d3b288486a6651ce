"""The servers that tests start, and free ports for them."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stack.die_with_parent import dies_with_parent
from stack.redis_server import RedisProgram, find_redis
from stack.settings import StackSettings
from tests.waiting import wait_until


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses, and that nobody else gets for a minute.

    A connection to the port has been closed from the port's side. For a minute, Linux does not give such a
    port to processes that ask for any port, only to those that name it and set SO_REUSEADDR, as servers do.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()
            client.recv(1)
    return port


def redis_program() -> RedisProgram:
    """Return the Redis that tests start: the one that LONGCAT_REDIS_SERVER names, or the first one found."""
    return find_redis(StackSettings().redis_server)


def answers(port: int, path: str = "/") -> bool:
    """Whether an HTTP server on this port answers with anything but an error of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclass(frozen=True)
class S3Server:
    """Where an S3 server listens; it takes these credentials."""

    endpoint_url: str
    region: str = "us-east-1"
    access_key_id: str = "key"
    secret_access_key: str = "secret"


@dataclass(frozen=True)
class S3Bucket:
    """An empty bucket on a server."""

    server: S3Server
    name: str

    @property
    def url(self) -> str:
        """As `LONGCAT_STORAGE` names it."""
        return f"s3://{self.name}"


@contextmanager
def run_s3_server(log: Path) -> Iterator[S3Server]:
    """Run moto's S3 server as a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        log.open("wb") as output,
        subprocess.Popen(dies_with_parent(command), stdout=output, stderr=output) as process,
    ):
        try:
            wait_until(lambda: answers(port, "/moto-api/"))
            yield S3Server(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


def create_bucket(server: S3Server, name: str) -> None:
    """Create an empty bucket."""
    import boto3  # an extra, which most tests do without

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
    )
    client.create_bucket(Bucket=name)
    client.close()
