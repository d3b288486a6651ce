"""Test that the receiver remembers webhooks, and answers none while it hangs."""

from __future__ import annotations

import httpx
import pytest

from tests.chaos.receiver import run_receiver


def test_receiver_remembers_what_it_answered():
    webhook = {"type": "job.succeeded", "data": {"id": "mine"}}
    with run_receiver() as receiver:
        assert httpx.post(receiver.url, json=webhook, timeout=60).status_code == 200
        receiver.hangs = True
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(receiver.url, json={**webhook, "data": {"id": "other"}}, timeout=0.2)
    assert receiver.received == {("job.succeeded", "mine")}
