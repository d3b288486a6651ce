"""Verification of webhooks that the service signed."""

from __future__ import annotations

import base64
import json

import pytest
from pydantic import SecretStr

from longcat_video_client import InvalidWebhook, Job, verify_webhook
from longcat_video_client.testing import signed_webhook
from service.webhooks.signing import Signer

NOW = 1_800_000_000
JOB = {"id": "a", "status": "succeeded", "mood": "good"}
BODY = json.dumps(
    {"type": "job.succeeded", "timestamp": "2027-01-15T08:00:00Z", "data": JOB, "new": 1}
).encode()
SECRET = SecretStr("whsec_" + "c2VjcmV0" * 6)


@pytest.fixture
def signer(redis):
    return Signer(redis, SECRET, clock=lambda: NOW)


@pytest.fixture
def headers(signer):
    return signer.headers("owner", "msg_1", NOW, BODY.decode())


def verify(headers, secrets, body=BODY, now_s=NOW):
    return verify_webhook(body, headers, secrets, now_s=now_s)


def test_webhook_that_the_service_signed_is_accepted(signer, headers):
    event = verify(headers, signer.secret_of("owner"))
    assert (event.id, event.type, event.job.status) == ("msg_1", "job.succeeded", "succeeded")
    assert event.timestamp.year == 2027
    assert event.job.model_extra == {"mood": "good"}


def test_headers_may_have_any_case(signer, headers):
    assert verify({name.upper(): value for name, value in headers.items()}, signer.secret_of("owner"))


@pytest.mark.parametrize("late_s", [-300, 300])
def test_webhook_within_the_tolerance_is_accepted(signer, headers, late_s):
    assert verify(headers, signer.secret_of("owner"), now_s=NOW + late_s)


@pytest.mark.parametrize("late_s", [-301, 301])
def test_old_and_future_webhooks_are_refused(signer, headers, late_s):
    with pytest.raises(InvalidWebhook, match="too old"):
        verify(headers, signer.secret_of("owner"), now_s=NOW + late_s)


def test_rotation_accepts_both_secrets_on_either_side(signer, headers):
    old = signer.secret_of("owner")
    new = signer.rotate("owner", overlap_s=60.0)
    assert verify(headers, [new, old])
    with pytest.raises(InvalidWebhook, match="no signature is valid"):
        verify(headers, new)
    during = signer.headers("owner", "msg_1", NOW, BODY.decode())
    assert verify(during, old)
    assert verify(during, new)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_missing_header_is_refused(signer, headers, name):
    del headers[name]
    with pytest.raises(InvalidWebhook, match=f"header {name} is missing"):
        verify(headers, signer.secret_of("owner"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", "msg_2"),
        ("webhook-timestamp", str(NOW - 1)),
        ("webhook-timestamp", "soon"),
        ("webhook-timestamp", "9" * 5000),
        ("webhook-timestamp", f"-{NOW}"),
        ("webhook-signature", ""),
        ("webhook-signature", "v1"),
        ("webhook-signature", "v1,"),
        ("webhook-signature", "v1,é!"),
        ("webhook-signature", "v1a,AAAA v1,AAAA"),
    ],
)
def test_changed_header_is_refused(signer, headers, name, value):
    with pytest.raises(InvalidWebhook):
        verify({**headers, name: value}, signer.secret_of("owner"))


def test_signature_of_another_version_does_not_count(signer, headers):
    with pytest.raises(InvalidWebhook):
        verify(
            {**headers, "webhook-signature": headers["webhook-signature"].replace("v1,", "v2,")},
            signer.secret_of("owner"),
        )


def test_changed_body_and_other_owners_are_refused(signer, headers):
    with pytest.raises(InvalidWebhook):
        verify(headers, signer.secret_of("owner"), BODY + b" ")
    with pytest.raises(InvalidWebhook):
        verify(headers, signer.secret_of("someone else"))


def test_signed_body_without_a_job_is_refused(signer):
    headers = signer.headers("owner", "msg_1", NOW, "[]")
    with pytest.raises(InvalidWebhook, match="no job"):
        verify(headers, signer.secret_of("owner"), b"[]")


@pytest.mark.parametrize("secret", ["whsec_", "whsec_é", "whsec_a"])
def test_malformed_secret_is_a_value_error(headers, secret):
    with pytest.raises(ValueError, match="secret"):
        verify(headers, secret)


def test_webhook_of_the_testing_module_is_verified():
    secret = "whsec_" + base64.b64encode(b"x" * 24).decode()
    headers, body = signed_webhook(secret, Job(id="a", status="failed"), "failed")
    event = verify_webhook(body, headers, secret)
    assert (event.type, event.job.status) == ("job.failed", "failed")
    headers, body = signed_webhook(secret, Job(id="a", status="failed"), sent_at_s=1)
    with pytest.raises(InvalidWebhook):
        verify_webhook(body, headers, secret)
