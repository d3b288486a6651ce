"""A request is followed by its id, and by W3C's trace context, into the job that it orders."""

from __future__ import annotations

import logging

import pytest

from jobs.logs import current_names

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def test_an_order_carries_the_id_and_the_trace_of_its_request(client, worker):
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
def test_a_trace_that_is_none_goes_no_further(client, worker, given):
    client.post("/generate", json={"prompt": "a ball"}, headers={"traceparent": given})
    assert worker.claim().job.traceparent is None


def test_an_id_is_made_where_none_was_sent(client, worker):
    answer = client.post("/generate", json={"prompt": "a ball"})
    assert worker.claim().job.request_id == answer.headers["X-Request-Id"]


def test_neither_is_shown_to_clients(client, order):
    assert not {"request_id", "traceparent"} & order().keys()


def test_lines_about_an_order_name_request_and_job(client, caplog):
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
