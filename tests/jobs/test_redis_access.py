"""Redis behind TLS with client certificates, and Redis with a user of few rights."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from jobs.connect import check_server, connect
from jobs.errors import Unavailable
from jobs.maintenance import sweep
from jobs.queue import TicketQueue, consume
from jobs.registration import GroupRegistration, live_groups
from jobs.settings import SharedSettings
from jobs.store.idempotency import IdempotencyKeys
from jobs.store.job_store import JobStore
from jobs.store.memory import memory
from jobs.store.metrics import counters
from jobs.store.outbox import Outbox
from jobs.store.queue_depths import queue_depths
from jobs.store.quotas import Quotas
from jobs.store.scripts import Replication
from service.keys.api_keys import ApiKeys
from service.webhooks.signing import Signer
from tests.jobs.examples import LEASE_S, a_result, a_submission
from tests.redis_fleet import RedisProcess
from tests.servers import free_port

PAGE = Path(__file__).parents[2] / "docs" / "redis.md"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a key and a certificate that signs itself, for 127.0.0.1."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=redis"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    return key, certificate


class TestTls:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        return make_certificate(tmp_path)

    @pytest.fixture
    def port(self, files: tuple[Path, Path], tmp_path: Path) -> Iterator[int]:
        key, certificate = files
        port = free_port()
        options = ["--tls-port", str(port), "--tls-key-file", str(key), "--tls-cert-file", str(certificate)]
        try:
            with RedisProcess(tmp_path / "redis", [*options, "--tls-ca-cert-file", str(certificate)]):
                yield port
        except RuntimeError:
            pytest.skip("this Redis was built without TLS")

    def test_client_with_a_certificate_is_accepted(self, port: int, files: tuple[Path, Path]):
        key, certificate = files
        settings = SharedSettings(
            redis_url=f"rediss://127.0.0.1:{port}/0",
            redis_ca_file=certificate,
            redis_cert_file=certificate,
            redis_key_file=key,
        )
        with connect(settings.redis_address) as redis:
            assert JobStore(redis).client.submit(a_submission()).job.status == "queued"

    def test_client_without_a_certificate_is_refused(self, port: int, files: tuple[Path, Path]):
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={files[1]}"
        with connect(url, 0.5) as redis, pytest.raises(Unavailable):
            JobStore(redis).client.list_jobs()

    def test_server_of_an_unknown_authority_is_refused(self, port: int, files: tuple[Path, Path]):
        key, certificate = files
        assert str(certificate) not in (ssl.get_default_verify_paths().cafile or "")
        url = f"rediss://127.0.0.1:{port}/0?ssl_certfile={certificate}&ssl_keyfile={key}"
        with connect(url, 0.5) as redis, pytest.raises(Unavailable):
            JobStore(redis).client.list_jobs()


def documented_rules() -> list[str]:
    """Return the rules of the ACL user that the documentation advises."""
    found = re.search(r"^ACL SETUSER longcat on >password (.+)$", PAGE.read_text(), re.MULTILINE)
    assert found
    return found[1].split()


def test_documented_user_may_do_everything_that_the_system_does(tmp_path: Path):
    with RedisProcess(tmp_path / "redis") as server:
        with server.client() as admin:
            admin.execute_command("ACL", "SETUSER", "longcat", "on", ">password", *documented_rules())
            admin.execute_command("ACL", "SETUSER", "default", "off")
        url = f"redis://longcat:password@127.0.0.1:{server.port}/0"
        with connect(url) as redis:
            check_server(redis)
            use_everything(redis)
            with pytest.raises(NoPermissionError):
                redis.flushall()
            with pytest.raises(NoPermissionError):
                redis.get("another:key")


def use_everything(redis: Redis) -> None:
    """Run one job, its webhook and its removal, as the API and the workers do."""
    store = JobStore(redis, quotas=Quotas(owner_requests_per_s=100), retention_s=0.001)
    tickets = TicketQueue(redis)
    store.client.count_request("a")
    reserved = IdempotencyKeys(redis).reserve("a", "key", "fingerprint")
    store.client.reserve(reserved.job_id)
    store.client.submit(
        a_submission(id=reserved.job_id, key_reservation=reserved, owner="a", webhook_url="http://127.0.0.1/")
    )
    tickets.enqueue(reserved.job_id)
    taken: list[int] = []
    consume(redis, lambda: taken.append(1), lambda: bool(taken))
    claim = store.holder.claim("g", LEASE_S)
    assert claim is not None
    store.holder.renew_lease(claim)
    store.holder.save_checkpoint(claim, {})
    store.holder.begin_upload(claim)
    store.holder.succeed(claim, a_result(claim), {"denoise": 1.0})
    assert store.client.events(claim.job.id)
    store.client.list_jobs()
    store.client.counts()
    GroupRegistration(redis, "g").heartbeat("ready", ranks=1)
    assert live_groups(redis)
    counters(redis)
    queue_depths(redis)
    memory(redis)
    outbox = Outbox(redis)
    assert outbox.take(30.0)
    outbox.backlog()
    outbox.log(claim.job.id)
    keys = ApiKeys(redis)
    key = keys.create("a")
    assert keys.authenticate(key)
    Signer(redis, None, None).secret_of("a")
    assert sweep(store, tickets).expired
    while removal := store.maintenance.lease_file_removal():
        store.maintenance.release_file_removal(removal)
        store.maintenance.confirm_file_removal(removal)
    with_replicas = JobStore(redis, replication=Replication(1, 0.01))
    with pytest.raises(Unavailable, match="only 0 replicas"):
        with_replicas.client.submit(a_submission())
