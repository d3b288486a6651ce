"""Webhooks over the wire: signatures, retries, receivers, secrets and limits."""

from __future__ import annotations

import base64
import hmac
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Event

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from jobs.errors import InvalidRequest, OutOfMemory, Unavailable
from jobs.storage.keys import new_job_id
from jobs.store.outbox import Outbox
from jobs.store.submission import Submission
from service.app import create_app
from service.outgoing.connection import default_tls
from service.webhooks import url_checker
from service.webhooks.delivery_worker import RETRY_AFTER_S, DeliveryWorker
from service.webhooks.signing import Signer
from service.webhooks.url_checker import WebhookUrlChecker
from tests.jobs.examples import Clock
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, settings_for
from tests.service.hosts import host, tarpit
from tests.waiting import wait_until

SECRET = SecretStr("whsec_" + "c2VjcmV0" * 6)


@dataclass
class Receiver:
    """A receiver that answers with the given statuses; the last one is repeated."""

    answers: list[int] = field(default_factory=lambda: [200])
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    def __call__(self, request):
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.received.append((dict(request.headers), body))
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        request.send_response(status)
        if status in {301, 307}:
            request.send_header("Location", f"{self.url}/elsewhere")
        request.send_header("Content-Length", "0")
        request.end_headers()

    @property
    def types(self):
        return [json.loads(body)["type"] for _, body in self.received]


@pytest.fixture
def receiver():
    receiver = Receiver()
    with host(receiver) as receiver.url:
        yield receiver


@dataclass
class Post:
    """A delivery worker whose clock the test controls."""

    delivery_worker: DeliveryWorker
    clock: Clock
    outbox: Outbox

    def deliver_all(self):
        while self.delivery_worker.deliver_next():
            pass


@pytest.fixture
def post(client, redis, settings):
    def open_post(**changes):
        changed = settings.model_copy(
            update={"webhook_private_hosts": True, "webhook_secret": SECRET, "webhook_interval_s": 0.01}
            | changes
        )
        clock = Clock(int(redis.time()[0] * 1000) + 10_000)
        outbox = Outbox(redis, clock)
        return Post(DeliveryWorker(outbox, Signer(redis, changed.webhook_secret), changed), clock, outbox)

    return open_post


def log_of(client, job):
    return client.get(f"/jobs/{job['id']}/webhooks").json()["attempts"]


class TestWebhook:
    def test_signature_is_verified_by_the_reference_library(self, order, worker, receiver, post, redis):
        job = order(webhook_url=f"{receiver.url}/hook?a=b")
        worker.succeed(worker.claim())
        post().deliver_all()
        verifier = Webhook(Signer(redis, SECRET).secret_of(""))
        events = [verifier.verify(body, headers) for headers, body in receiver.received]
        assert [event["type"] for event in events] == ["job.started", "job.succeeded"]
        assert events[1]["data"]["id"] == job["id"]
        assert events[1]["data"]["result"]["video_url"] == f"/jobs/{job['id']}/video"
        assert [event["data"]["status"] for event in events] == ["running", "succeeded"]

    def test_altered_webhook_is_not_verified(self, order, worker, receiver, post, redis):
        order(webhook_url=receiver.url)
        worker.claim()
        post().deliver_all()
        headers, body = receiver.received[0]
        with pytest.raises(WebhookVerificationError):
            Webhook(Signer(redis, SECRET).secret_of("")).verify(body + b" ", headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(Signer(redis, SECRET).secret_of("somebody else")).verify(body, headers)

    def test_only_requested_events_are_sent(self, client, order, worker, receiver, post):
        order(webhook_url=receiver.url, webhook_events=["failed", "cancelled"])
        worker.job_store.holder.fail(worker.claim(), OutOfMemory("does not fit"), {})
        client.post(f"/jobs/{order(webhook_url=receiver.url)['id']}/cancel")
        post().deliver_all()
        assert sorted(receiver.types) == ["job.cancelled", "job.failed"]

    def test_every_attempt_has_the_same_id_and_body(self, order, worker, receiver, post):
        receiver.answers = [500, 200]
        order(webhook_url=receiver.url)
        worker.claim()
        mine = post()
        mine.deliver_all()
        mine.clock.advance(RETRY_AFTER_S[0])
        mine.deliver_all()
        (first, first_body), (second, second_body) = receiver.received
        assert (first["webhook-id"], first_body) == (second["webhook-id"], second_body)


class TestReceiver:
    def test_failed_delivery_is_retried_for_days(self, client, order, worker, receiver, post):
        receiver.answers = [503]
        job = order(webhook_url=receiver.url)
        worker.claim()
        mine = post()
        for pause_s in (*RETRY_AFTER_S, 10**6):
            mine.deliver_all()
            mine.deliver_all()
            mine.clock.advance(pause_s)
        assert len(receiver.received) == len(RETRY_AFTER_S) + 1
        assert sum(RETRY_AFTER_S) > 2 * 86400
        log = log_of(client, job)
        assert [entry["attempt"] for entry in log] == list(range(1, len(RETRY_AFTER_S) + 2))
        assert [entry["outcome"] for entry in log] == ["failed"] * len(RETRY_AFTER_S) + ["given_up"]
        assert {entry["status_code"] for entry in log} == {503}
        assert [bool(entry["next_at"]) for entry in log[-2:]] == [True, False]

    def test_410_ends_the_retries(self, client, order, worker, receiver, post):
        receiver.answers = [410]
        job = order(webhook_url=receiver.url)
        worker.claim()
        post().deliver_all()
        assert [entry["outcome"] for entry in log_of(client, job)] == ["given_up"]

    @pytest.mark.parametrize("status", [301, 307, 400, 404, 500])
    def test_other_status_than_2xx_is_a_failed_attempt(self, client, order, worker, receiver, post, status):
        receiver.answers = [status]
        job = order(webhook_url=receiver.url)
        worker.claim()
        post().deliver_all()
        assert len(receiver.received) == 1
        assert [(e["outcome"], e["status_code"]) for e in log_of(client, job)] == [("failed", status)]

    @pytest.mark.parametrize("status", [200, 201, 204, 299])
    def test_2xx_is_a_delivery(self, client, order, worker, receiver, post, status):
        receiver.answers = [status]
        job = order(webhook_url=receiver.url)
        worker.claim()
        post().deliver_all()
        assert [entry["outcome"] for entry in log_of(client, job)] == ["delivered"]

    def test_unreachable_receiver_is_logged_with_the_reason(self, client, order, worker, post):
        job = order(webhook_url="http://127.0.0.1:9/")
        worker.claim()
        post().deliver_all()
        (entry,) = log_of(client, job)
        assert (entry["outcome"], entry["status_code"]) == ("failed", None)
        assert "cannot be reached" in entry["error"]

    @pytest.mark.parametrize("named", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433"])
    def test_private_address_receives_nothing(self, client, order, worker, receiver, post, named):
        job = order(webhook_url=receiver.url.replace("127.0.0.1", named))
        worker.claim()
        post(webhook_private_hosts=False).deliver_all()
        assert receiver.received == []
        assert [entry["outcome"] for entry in log_of(client, job)] == ["failed"]


class TestRequest:
    @pytest.mark.parametrize(
        "fields",
        [
            {"webhook_url": "ftp://example.com"},
            {"webhook_events": ["failed"]},
            {"webhook_url": "https://example.com", "webhook_events": ["exploded"]},
            {"webhook_url": "https://example.com", "webhook_events": []},
        ],
    )
    def test_invalid_webhook_is_refused(self, client, fields):
        answer = client.post("/generate", json={"prompt": "a ball", **fields})
        assert answer.status_code == 422
        assert "webhook" in answer.json()["error"]["message"]

    def test_job_shows_its_webhook_events(self, order):
        job = order(webhook_url="https://example.com")
        assert job["request"]["webhook_events"] == ["started", "succeeded", "failed", "cancelled"]
        assert order()["request"]["webhook_events"] is None

    def test_webhook_fields_are_accepted_in_a_form(self, client):
        fields = {"prompt": "a ball", "webhook_url": "https://example.com", "webhook_events": '["failed"]'}
        answer = client.post("/generate", files={name: (None, value) for name, value in fields.items()})
        assert answer.json()["request"]["webhook_events"] == ["failed"]

    def test_log_is_empty_at_first_and_unknown_for_other_jobs(self, client, order):
        assert log_of(client, order()) == []
        assert client.get("/jobs/nobody/webhooks").status_code == 404


def verifying(signer: Signer, owner: str, *secrets: str) -> list[bool]:
    """Return which secrets verify a webhook that is signed now."""
    body = '{"type": "job.succeeded"}'
    headers = signer.headers(owner, "msg_1", int(time.time()), body)

    def verifies(secret: str) -> bool:
        try:
            Webhook(secret).verify(body, headers)
        except WebhookVerificationError:
            return False
        return True

    return [verifies(secret) for secret in secrets]


class TestUrlCheck:
    def judge(self, monkeypatch, lookup, url):
        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        WebhookUrlChecker(allow_private=False).check(url)

    @pytest.mark.parametrize("host", ["127.0.0.1:8000", "10.0.0.1", "[::1]", "169.254.169.254", "2130706433"])
    def test_private_address_is_refused(self, redis_server, redis, tmp_path, host):
        set_only_pool(redis, CAPABILITY)
        settings = settings_for(redis_server, tmp_path, webhook_private_hosts=False)
        with TestClient(create_app(settings)) as client:
            answer = client.post("/generate", json={"prompt": "a ball", "webhook_url": f"http://{host}/x"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["field"]) == (422, "invalid_request", "webhook_url")
        assert redis.zcard("longcat:index:all") == 0

    def test_name_with_a_private_address_is_refused(self, monkeypatch):
        def lookup(*_, **__):
            return [(2, 1, 6, "", (address, 443)) for address in ("1.1.1.1", "192.168.0.1")]

        with pytest.raises(InvalidRequest):
            self.judge(monkeypatch, lookup, "https://inside.example.com/hook")

    def test_public_or_unresolvable_name_is_accepted(self, monkeypatch):
        def nothing(*_, **__):
            raise socket.gaierror("no such name")

        self.judge(monkeypatch, lambda *_, **__: [(2, 1, 6, "", ("1.1.1.1", 443))], "https://example.com")
        self.judge(monkeypatch, nothing, "https://late.example.com")

    def test_slow_name_server_occupies_few_threads(self, monkeypatch):
        monkeypatch.setattr(url_checker, "_LOOKUP_TIMEOUT_S", 0.001)
        lookups: list[bool] = []
        answered = Event()

        def wait_for_answer(*_, **__):
            lookups.append(answered.wait(30))
            return []

        monkeypatch.setattr(socket, "getaddrinfo", wait_for_answer)
        hosts = WebhookUrlChecker(allow_private=False)
        for number in range(20):
            hosts.check(f"https://{number}.example.com")
        assert sum(thread.name == "webhook-host" for thread in threading.enumerate()) == 8
        answered.set()
        wait_until(lambda: len(lookups) == 8)


def test_signature_follows_the_specification(redis):
    signer = Signer(redis, SECRET)
    secret = base64.b64decode(signer.secret_of("me").removeprefix("whsec_"))
    signed = b"msg_1.1700000000.{}"
    expected = base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()
    assert signer.headers("me", "msg_1", 1_700_000_000, "{}") == {
        "webhook-id": "msg_1",
        "webhook-timestamp": "1700000000",
        "webhook-signature": f"v1,{expected}",
    }


class TestSecrets:
    def test_secret_is_generated_once(self, redis):
        made = Signer(redis, None).secret_of("me")
        assert made == Signer(redis, None).secret_of("me") != Signer(redis, None).secret_of("you")
        assert made != Signer(redis, SECRET).secret_of("me")

    def test_old_and_new_secret_verify_until_the_overlap_ends(self, redis):
        now = [1000.0]
        signer = Signer(redis, SECRET, clock=lambda: now[0])
        old = signer.secret_of("me")
        new = signer.rotate("me", overlap_s=60)
        assert new == signer.secret_of("me") != old
        assert verifying(signer, "me", old, new) == [True, True]
        now[0] += 60
        assert verifying(signer, "me", old, new) == [False, True]

    def test_rotation_affects_one_owner_only(self, redis):
        signer = Signer(redis, SECRET)
        yours = signer.secret_of("you")
        signer.rotate("me", overlap_s=60)
        assert signer.secret_of("you") == yours

    def test_rotation_without_overlap_ends_the_old_secret_immediately(self, redis):
        signer = Signer(redis, SECRET)
        old = signer.secret_of("me")
        assert verifying(signer, "me", old, signer.rotate("me", overlap_s=0)) == [False, True]

    def test_secret_before_the_previous_one_no_longer_signs(self, redis):
        signer = Signer(redis, SECRET)
        first = signer.secret_of("me")
        second, third = signer.rotate("me", 60), signer.rotate("me", 60)
        assert verifying(signer, "me", first, second, third) == [False, True, True]

    def test_previous_service_secret_also_signs(self, redis):
        other = SecretStr("whsec_" + "b3RoZXIh" * 6)
        old, new = Signer(redis, SECRET).secret_of("me"), Signer(redis, other).secret_of("me")
        assert verifying(Signer(redis, other, SECRET), "me", old, new) == [True, True]
        assert verifying(Signer(redis, other), "me", old, new) == [False, True]

    @pytest.mark.parametrize("secret", ["x", "whsec_", "whsec_short", "c2VjcmV0" * 6])
    def test_malformed_secret_in_the_settings_is_refused(self, redis_server, tmp_path, secret):
        with pytest.raises(ValidationError):
            settings_for(redis_server, tmp_path, webhook_secret=secret)


class TestDeliveryWorker:
    def test_threads_send_within_the_service(self, order, worker, receiver, redis, settings):
        changed = settings.model_copy(
            update={"webhook_private_hosts": True, "webhook_interval_s": 0.02, "webhook_threads": 1}
        )
        order(webhook_url=receiver.url)
        with DeliveryWorker(Outbox(redis), Signer(redis, None), changed):
            worker.claim()
            wait_until(lambda: receiver.types == ["job.started"])

    @pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("a mistake")])
    def test_threads_continue_after_an_error(
        self, order, worker, receiver, redis, settings, monkeypatch, error
    ):
        changed = settings.model_copy(
            update={"webhook_private_hosts": True, "webhook_interval_s": 0.02, "webhook_threads": 1}
        )
        outbox, errors = Outbox(redis), [error]
        take = outbox.take

        def fails_at_first(*given):
            if errors:
                raise errors.pop()
            return take(*given)

        monkeypatch.setattr(outbox, "take", fails_at_first)
        order(webhook_url=receiver.url)
        worker.claim()
        with DeliveryWorker(outbox, Signer(redis, None), changed):
            wait_until(lambda: receiver.types == ["job.started"], timeout_s=30)

    def test_several_workers_send_each_webhook_once(self, order, worker, receiver, redis, settings):
        changed = settings.model_copy(
            update={"webhook_private_hosts": True, "webhook_interval_s": 0.01, "webhook_threads": 4}
        )
        workers = [DeliveryWorker(Outbox(redis), Signer(redis, None), changed) for _ in range(2)]
        for _ in range(15):
            order(webhook_url=receiver.url)
            worker.succeed(worker.claim())
        with workers[0], workers[1]:
            wait_until(lambda: Outbox(redis).backlog().num_deliveries == 0)
        assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 30
        assert len(receiver.received) == 30

    def test_worker_runs_as_a_process_of_its_own(self, order, worker, receiver, redis_server):
        environment = {"LONGCAT_REDIS_URL": redis_server, "LONGCAT_WEBHOOK_PRIVATE_HOSTS": "true"}
        process = subprocess.Popen(
            [sys.executable, "-m", "service.webhooks"], env={**os.environ, **environment}
        )
        try:
            order(webhook_url=receiver.url)
            worker.claim()
            wait_until(lambda: receiver.types == ["job.started"])
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.fixture
def tell(order, worker):
    """Return a function that makes a webhook of an owner due."""
    job = worker.job_store.client.get(order()["id"])

    def cancelled(owner, url):
        submission = Submission(id=new_job_id(), order=job.order, owner=owner, webhook_url=url)
        worker.job_store.client.submit(submission)
        worker.job_store.client.cancel(submission.id)
        return submission.id

    return cancelled


@pytest.fixture
def sending(settings):
    """Return settings for a delivery worker with threads."""
    changes = {"webhook_private_hosts": True, "webhook_interval_s": 0.02, "webhook_timeout_s": 60}
    return settings.model_copy(update=changes | {"webhook_threads": 4, "webhook_max_per_owner": 3})


class TestTarpit:
    @pytest.mark.parametrize("drip", [b"", b"HTTP/1.1 200 OK\r\nA: "])
    def test_tarpit_occupies_few_threads_and_does_not_delay_other_owners(
        self, tell, receiver, redis, sending, drip
    ):
        with tarpit(drip) as tar, DeliveryWorker(Outbox(redis), Signer(redis, None), sending):
            for _ in range(20):
                tell("a", tar.url)
            wait_until(lambda: len(tar.connections) == 2)
            for _ in range(5):
                tell("b", receiver.url)
            tell("a", receiver.url)
            wait_until(lambda: len(receiver.received) == 6)
            assert len(tar.connections) == 2
            for connection in tar.connections:
                connection.close()

    def test_tarpits_on_many_ports_do_not_occupy_all_threads(self, tell, receiver, redis, sending):
        with ExitStack() as stack:
            tars = [stack.enter_context(tarpit()) for _ in range(5)]
            stack.enter_context(DeliveryWorker(Outbox(redis), Signer(redis, None), sending))
            for tar in tars:
                tell("a", tar.url)
            wait_until(lambda: sum(len(tar.connections) for tar in tars) == 3)
            tell("b", receiver.url)
            wait_until(lambda: receiver.received)
            assert sum(len(tar.connections) for tar in tars) == 3
            for connection in (connection for tar in tars for connection in tar.connections):
                connection.close()

    def test_slowly_sent_response_fails_at_the_timeout(self, client, order, worker, post):
        with tarpit(b"HTTP/1.1 200 OK\r\nA: ") as tar:
            job = order(webhook_url=tar.url)
            worker.claim()
            post(webhook_timeout_s=0.1).deliver_all()
        (entry,) = log_of(client, job)
        assert (entry["outcome"], entry["error"]) == ("failed", "the host is too slow")

    def test_shutdown_does_not_wait_for_a_tarpit(self, tell, redis, sending, monkeypatch):
        monkeypatch.setattr("service.webhooks.delivery_worker.SHUTDOWN_TIMEOUT_S", 0.05)
        deliveries = DeliveryWorker(Outbox(redis), Signer(redis, None), sending)
        with tarpit() as tar:
            with deliveries:
                tell("a", tar.url)
                wait_until(lambda: tar.connections)
            assert any(thread.is_alive() for thread in deliveries._threads)
            assert Outbox(redis).backlog().num_deliveries == 1


def test_certificates_are_loaded_once_for_all_webhooks(tell, receiver, post, monkeypatch):
    default_tls.cache_clear()
    read: list[None] = []
    load = ssl.SSLContext.load_default_certs
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *args: read.append(load(*args)))
    mine = post()
    for _ in range(3):
        tell("a", receiver.url)
    mine.deliver_all()
    assert (len(receiver.received), len(read)) == (3, 1)


def test_webhook_of_a_deleted_job_is_not_sent(client, order, worker, receiver, post):
    job = order(webhook_url=receiver.url)
    worker.succeed(worker.claim())
    assert client.delete(f"/jobs/{job['id']}").status_code == 204
    post().deliver_all()
    assert receiver.received == []
