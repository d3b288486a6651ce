"""Request ids and W3C trace context reach responses, logs and the job."""

from __future__ import annotations

import logging

import pytest

from jobs.logs import current_names

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def test_job_carries_request_id_and_trace(client, worker):
    headers = {"X-Request-Id": "mine-1", "traceparent": TRACEPARENT}
    client.post("/generate", json={"prompt": "a ball"}, headers=headers)
    job = worker.claim().job
    assert (job.request_id, job.traceparent) == ("mine-1", TRACEPARENT)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "00-x",
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        f"00-{'A' * 32}-{'b' * 16}-01",
        f"ff-{'a' * 32}-{'b' * 16}-01",
        TRACEPARENT + "-more",
    ],
)
def test_invalid_trace_is_dropped(client, worker, given):
    client.post("/generate", json={"prompt": "a ball"}, headers={"traceparent": given})
    assert worker.claim().job.traceparent is None


def test_id_is_generated_if_none_was_sent(client, worker):
    answer = client.post("/generate", json={"prompt": "a ball"})
    assert worker.claim().job.request_id == answer.headers["X-Request-Id"]


def test_clients_see_neither_id_nor_trace_in_the_job(client, order):
    assert not {"request_id", "traceparent"} & order().keys()


def test_log_entries_name_request_and_job(client, caplog):
    names: list[dict[str, str]] = []

    class Naming(logging.Handler):
        def emit(self, record):
            names.append({"logger": record.name, **current_names()})

    handler = Naming()
    logging.getLogger("service.jobs.submission").addHandler(handler)
    with caplog.at_level(logging.INFO):
        job = client.post("/generate", json={"prompt": "a ball"}, headers={"X-Request-Id": "mine-2"}).json()
    logging.getLogger("service.jobs.submission").removeHandler(handler)
    assert names == [{"logger": "service.jobs.submission", "request_id": "mine-2", "job_id": job["id"]}]
