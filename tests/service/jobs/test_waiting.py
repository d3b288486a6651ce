"""`POST /generate?wait=S` and `POST /jobs/{id}/retry?wait=S` return the finished job if it ends in time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.app import create_app
from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY, serving, settings_for
from tests.service.working import working
from tests.tickets import num_tickets
from tests.waiting import wait_until


def generate(port, wait, **options):
    """Request a video and wait for it."""
    url = f"http://127.0.0.1:{port}/generate"
    return httpx.post(url, params={"wait": wait}, json={"prompt": "a red ball"}, timeout=90, **options)


def test_job_that_ends_in_time_is_returned_with_its_result(live, worker):
    with working(worker, worker.succeed):
        answer = generate(live, 60)
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.json()["result"]["size_bytes"] > 0
    assert answer.headers["Location"] == f"/jobs/{answer.json()['id']}"


def test_retry_waits_for_its_job(live, worker):
    job = generate(live, 0.1).json()
    worker.succeed(worker.claim())
    url = f"http://127.0.0.1:{live}/jobs/{job['id']}/retry"
    with working(worker, worker.succeed):
        answer = httpx.post(url, params={"wait": 60}, timeout=90)
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.json()["id"] != job["id"]
    queued = httpx.post(url, params={"wait": 0.1}, timeout=90)
    assert (queued.status_code, queued.json()["status"]) == (202, "queued")


def test_job_that_takes_longer_is_returned_as_it_is(live, worker):
    answer = generate(live, 0.2)
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")


def test_worker_learns_of_the_job_before_the_wait_ends(live, redis, worker):
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(generate, live, 60)
        lease = wait_until(lambda: worker.job_store.holder.claim("by hand", lease_s=600.0))
        wait_until(lambda: num_tickets(redis) >= 1)
        assert not answer.done()
        worker.succeed(lease)
        assert answer.result().status_code == 200


def test_repeated_request_waits_for_the_same_job(live, worker):
    key = {"headers": {"Idempotency-Key": "order-1"}}
    first = generate(live, 0.1, **key)
    with ThreadPoolExecutor() as pool:
        second = pool.submit(generate, live, 60, **key)
        worker.succeed(worker.claim())
        assert second.result().status_code == 200
    assert second.result().json()["id"] == first.json()["id"]


def test_waiting_requests_hold_no_thread(live, client, worker):
    """Wait with more requests than there are threads, while another request is answered."""
    num_requests = 60
    with ThreadPoolExecutor(num_requests) as pool:
        waiting = [pool.submit(generate, live, 60) for _ in range(num_requests)]
        url = f"http://127.0.0.1:{live}/jobs?status=queued&limit=100"
        wait_until(lambda: len(httpx.get(url, timeout=90).json()["jobs"]) == num_requests)
        assert httpx.get(url, timeout=90).status_code == 200
        for _ in range(num_requests):
            worker.succeed(worker.claim())
        assert {answer.result().status_code for answer in waiting} == {200}


def test_without_a_free_event_stream_nothing_is_waited_for(redis_server, redis, tmp_path):
    app = create_app(settings_for(redis_server, tmp_path, owner_event_streams=1))
    with serving(app) as port, ThreadPoolExecutor() as pool:
        set_only_pool(redis, CAPABILITY)
        first = pool.submit(generate, port, 60)
        wait_until(lambda: len(app.state.backend.event_streams._open) == 1)
        assert generate(port, 60).status_code == 202
        assert not first.done()
        app.state.backend.event_streams.close()  # as at shutdown
        assert first.result().status_code == 202


def test_wait_of_a_client_that_disconnects_ends(live, app):
    answered = threading.Event()

    def give_up():
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"http://127.0.0.1:{live}/generate?wait=60", json={"prompt": "a red ball"}, timeout=0.5
            )
        answered.set()

    thread = threading.Thread(target=give_up)
    thread.start()
    thread.join()
    assert answered.is_set()
    wait_until(lambda: not app.state.backend.event_streams._open)


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "long"])
@pytest.mark.parametrize("path", ["/generate", "/jobs/{}/retry"])
def test_other_times_are_refused(client, wait, path):
    job = client.post("/generate", json={"prompt": "a red ball"}).json()
    answer = client.post(path.format(job["id"]), params={"wait": wait}, json={"prompt": "a red ball"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "wait")
