"""A whole worker, seen by an attacker: nothing of it listens on a network, and its ranks hold no secrets."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
import pytest

from jobs.registration import live_groups
from stack.redis_server import open_redis
from tests.rights import open_to_others
from tests.waiting import wait_until
from tests.worker.running_worker import PATIENCE_S, RunningWorker, running_worker

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
    """A worker that became ready, and the addresses on which its processes listened until then."""

    worker: RunningWorker
    redis_url: str
    listening: set[tuple[str, int]] = field(default_factory=set)

    @property
    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.worker.parent.pid), *self.worker.look()]

    def look(self) -> None:
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                self.listening.update(listening_addresses(process))


def listening_addresses(process: psutil.Process) -> list[tuple[str, int]]:
    """The addresses at which this process's TCP and UDP sockets, IPv4 and IPv6, take what others send."""
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
    with pytest.MonkeyPatch.context() as environment, open_redis(folder / "redis") as url:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        environment.setenv("GLOO_SOCKET_IFNAME", "eth0")  # as images of clusters do
        settings = {"ranks": ranks, "context_parallel": context_parallel}
        with running_worker(folder, url, **settings) as worker:
            observed = Observed(worker, url)

            def all_groups_are_ready() -> bool:
                observed.look()
                states = [group.state for group in live_groups(worker.redis)]
                return states == ["ready"] * (ranks // context_parallel)

            wait_until(all_groups_are_ready, PATIENCE_S)
            worker.wait_for(worker.submit(), "succeeded")
            observed.look()
            yield observed


def test_everything_listens_on_loopback(observed):
    assert observed.listening, "gloo listens, so sockets should have been seen"
    assert [
        address for address in observed.listening if not ipaddress.ip_address(address[0]).is_loopback
    ] == []


def test_nothing_answers_at_another_address_of_this_machine(observed):
    addresses = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in {socket.AF_INET, socket.AF_INET6}
        and not ipaddress.ip_address(entry.address.partition("%")[0]).is_loopback
    ]
    if not addresses:
        pytest.skip("this machine has the loopback interface alone")
    ports = {port for process in observed.processes for _, port in listening_addresses(process)}
    answering = [(address, port) for address in addresses for port in ports if answers(address, port)]
    assert answering == []


def answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2.0):
            return True
    except OSError:
        return False


def test_only_the_parent_and_the_supervisors_hold_secrets(observed):
    supervisors = [process for process in observed.worker.look() if "--group" in process.cmdline()]
    trusted = {observed.worker.parent.pid, *(process.pid for process in supervisors)}
    others = [process for process in observed.processes if process.pid not in trusted]
    assert len(others) >= 3  # torchrun and two ranks at least
    planted = {*SECRETS.values(), observed.redis_url}
    for process in others:
        shown = " ".join([*process.environ().values(), *process.cmdline()])
        assert [secret for secret in planted if secret in shown] == []
        assert [name for name in process.environ() if name.startswith(("LONGCAT_", "AWS_", "OTEL_"))] == []
    for process in supervisors:
        assert SECRETS["LONGCAT_S3_SECRET_ACCESS_KEY"] in process.environ().values()


def test_no_other_user_may_open_what_the_worker_wrote(observed):
    assert list(observed.worker.storage.keys("jobs/"))
    assert open_to_others(observed.worker.folder / "data") == []
