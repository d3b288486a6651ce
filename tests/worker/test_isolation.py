"""A worker listens on no network, its ranks get no secrets, and it leaves nothing outside its folders."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from jobs.registration import live_groups
from stack.redis_server import RedisServer
from tests.rights import open_to_others
from tests.servers import redis_program
from tests.waiting import wait_until
from tests.worker.running_worker import PATIENCE_S, RunningWorker, running_worker

pytestmark = pytest.mark.integration

SECRETS = {
    "LONGCAT_API_KEY": "planted-api-key",
    "LONGCAT_WEBHOOK_SECRET": "whsec_cGxhbnRlZC13ZWJob29rLXNlY3JldA==",
    "LONGCAT_S3_ACCESS_KEY_ID": "planted-s3-key-id",
    "LONGCAT_S3_SECRET_ACCESS_KEY": "planted-s3-secret",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=planted-token",
    "NVIDIA_API_KEY": "planted-nvidia-key",
    "HF_TOKEN": "planted-hf-token",
    "DATABASE_PASSWORD": "planted-password",
}


@dataclass
class Observed:
    """A ready worker, and the addresses on which its processes listened while it started."""

    worker: RunningWorker
    redis_url: str
    temporary_folder: Path
    listening: set[tuple[str, int]] = field(default_factory=set)

    @property
    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.worker.parent.pid), *self.worker.look()]

    @property
    def supervisors(self) -> list[psutil.Process]:
        return [process for process in self.worker.look() if "--group" in process.cmdline()]

    def look(self) -> None:
        for process in self.processes:
            with suppress(
                psutil.NoSuchProcess, psutil.AccessDenied
            ):  # a supervisor cannot be inspected by its user
                self.listening.update(listening_addresses(process))


def listening_addresses(process: psutil.Process) -> list[tuple[str, int]]:
    """Return the addresses on which this process receives, over TCP and UDP, IPv4 and IPv6."""
    return [
        (connection.laddr.ip, connection.laddr.port)
        for connection in process.net_connections("inet")
        if connection.laddr
        and (
            connection.status == psutil.CONN_LISTEN
            or (connection.type == socket.SOCK_DGRAM and not connection.raddr)
        )
    ]


@pytest.fixture(
    scope="module",
    params=[(2, 2), (2, 1)],
    ids=["one group of two ranks", "two groups of one rank"],
)
def observed(request, tmp_path_factory) -> Iterator[Observed]:
    ranks, context_parallel = request.param
    folder = tmp_path_factory.mktemp("worker")
    with (
        pytest.MonkeyPatch.context() as environment,
        RedisServer(folder / "redis", redis_program()) as redis,
    ):
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        environment.setenv("GLOO_SOCKET_IFNAME", "eth0")  # as images of clusters do
        temporary_folder = folder / "tmp"
        temporary_folder.mkdir()
        environment.setenv("TMPDIR", str(temporary_folder))
        settings = {"ranks": ranks, "context_parallel": context_parallel}
        with running_worker(folder, redis.url, **settings) as worker:
            observed = Observed(worker, redis.url, temporary_folder)

            def all_groups_are_ready() -> bool:
                observed.look()
                states = [group.state for group in live_groups(worker.redis)]
                return states == ["ready"] * (ranks // context_parallel)

            wait_until(all_groups_are_ready, PATIENCE_S)
            worker.wait_for(worker.submit(), "succeeded")
            observed.look()
            yield observed


def test_every_socket_listens_on_loopback(observed):
    assert observed.listening, "gloo listens, so sockets should have been seen"
    assert [
        address for address in observed.listening if not ipaddress.ip_address(address[0]).is_loopback
    ] == []


def test_connections_to_other_addresses_of_the_machine_are_refused(observed):
    addresses = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in {socket.AF_INET, socket.AF_INET6}
        and not ipaddress.ip_address(entry.address.partition("%")[0]).is_loopback
    ]
    if not addresses:
        pytest.skip("this machine has the loopback interface alone")
    observed.look()
    ports = {port for _, port in observed.listening}
    answering = [(address, port) for address in addresses for port in ports if answers(address, port)]
    assert answering == []


def answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2.0):
            return True
    except OSError:
        return False


def test_only_the_launcher_and_the_supervisors_get_secrets(observed):
    trusted = {observed.worker.parent.pid, *(process.pid for process in observed.supervisors)}
    others = [process for process in observed.processes if process.pid not in trusted]
    assert len(others) >= 3  # torchrun and two ranks at least
    planted = {*SECRETS.values(), observed.redis_url}
    for process in others:
        shown = " ".join([*process.environ().values(), *process.cmdline()])
        assert [secret for secret in planted if secret in shown] == []
        assert [name for name in process.environ() if name.startswith(("LONGCAT_", "AWS_", "OTEL_"))] == []


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every environment; see test_process")
def test_environment_of_a_supervisor_cannot_be_read_by_its_user(observed):
    for pid in (observed.worker.parent.pid, *(process.pid for process in observed.supervisors)):
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/environ").read_text()


@pytest.mark.skipif(os.getuid() != 0, reason="only root reads the environment of a supervisor")
def test_supervisors_get_the_secrets_that_ranks_do_not(observed):
    for process in observed.supervisors:
        assert SECRETS["LONGCAT_S3_SECRET_ACCESS_KEY"] in process.environ().values()


def test_other_users_cannot_open_files_of_the_worker(observed):
    assert list(observed.worker.storage.keys("jobs/"))
    assert open_to_others(observed.worker.folder / "data") == []


def test_worker_leaves_nothing_in_the_temporary_folder(observed):
    assert list(observed.temporary_folder.rglob("*")) == []
