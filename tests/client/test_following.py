"""Waiting for jobs while services restart, connections break, and streams are not available."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest

from longcat_video_client import AsyncClient, Client, Job, NotFound, RetryPolicy, ServiceUnavailable, Timeout
from longcat_video_client.events import EventParser
from service.app import create_app
from tests.client.proxy import proxied
from tests.service.conftest import serving
from tests.service.hosts import host, sending
from tests.waiting import wait_until

HEAD = 400  # bytes; longer than the head of a response that streams events, shorter than that and an event


@pytest.fixture
def in_thread():
    """Return a function that runs another in a thread and returns its future."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


class TestStream:
    def test_events_end_with_the_job(self, service, worker):
        job = service.submit("a")
        kinds = []
        for event in service.jobs.events(job.id):
            kinds.append((event.type, event.job.status))
            if event.job.status == "queued":
                lease = worker.claim()
            elif event.job.status == "running":
                worker.succeed(lease)
        assert kinds[0] == ("status", "queued")
        assert kinds[-1] == ("done", "succeeded")

    def test_events_that_a_newer_service_adds_are_ignored(self, connect):
        stream = b'event: preview\ndata: 1\n\nevent: done\ndata: {"id": "a", "status": "succeeded"}\n\n'

        def answer(request):
            request.send_response(200)
            request.send_header("Content-Type", "text/event-stream; charset=utf-8")
            request.end_headers()
            request.wfile.write(stream)

        with host(answer) as url:
            assert [event.type for event in connect(url.removesuffix("/file")).jobs.events("a")] == ["done"]

    def test_any_number_of_jobs_can_be_waited_for_at_a_time(self, live, redis, worker):
        """Wait more often than httpx allows connections by default, and the service streams of one owner."""

        async def run():
            async with AsyncClient(f"http://127.0.0.1:{live}") as service:
                job = await service.submit("a")
                waiting: set[int] = set()

                def note(number, job):
                    waiting.add(number)

                waits = [
                    asyncio.create_task(service.jobs.wait(job.id, on_update=partial(note, number)))
                    for number in range(120)
                ]
                while len(waiting) < len(waits):
                    await asyncio.sleep(0.01)
                worker.succeed(worker.claim())
                return {job.status for job in await asyncio.gather(*waits)}

        assert asyncio.run(run()) == {"succeeded"}

    def test_characters_that_end_lines_elsewhere_do_not_break_an_event(self, service, worker):
        prompt = "one\u2028two\x85three\x0cfour\r\nfive"
        job = service.submit(prompt)
        worker.succeed(worker.claim())
        assert service.jobs.wait(job.id).request.prompt == prompt

    def test_stream_that_is_cut_is_opened_again(self, service, connect, proxy, worker):
        job = service.submit("a")
        worker.succeed(worker.claim())
        proxy.cut_after = [HEAD, HEAD + 10]
        (event,) = connect(proxy.url).jobs.events(job.id)
        assert (event.type, event.job.status) == ("done", "succeeded")
        assert proxy.num_connections == 3

    def test_stream_is_resumed_after_the_last_complete_event(self, connect):
        job = b'data: {"id": "a", "status": "%s"}'
        streams = [
            b"id: 5\nevent: status\n" + job % b"queued" + b"\n\nid: 6\nevent: status\n" + job % b"running",
            b"id: 7\nevent: done\n" + job % b"succeeded" + b"\n\n",
        ]
        asked = []

        def answer(request):
            asked.append(request.headers["Last-Event-ID"])
            request.send_response(200)
            request.send_header("Content-Type", "text/event-stream")
            request.end_headers()
            request.wfile.write(streams.pop(0))

        with host(answer) as url:
            events = connect(url.removesuffix("/file")).jobs.events("a")
            assert [(event.id, event.job.status) for event in events] == [("5", "queued"), ("7", "succeeded")]
        assert asked == [None, "5"]

    def test_events_continue_after_the_last_id(self, service, worker):
        job = service.submit("a")
        lease = worker.claim()
        with closing(service.jobs.events(job.id)) as events:
            first = next(events)
        worker.succeed(lease)
        (last,) = service.jobs.events(job.id, last_event_id=first.id)
        assert (last.type, last.job.status) == ("done", "succeeded")

    def test_finished_job_has_one_event(self, service, worker):
        job = service.submit("a")
        worker.succeed(worker.claim())
        (event,) = service.jobs.events(job.id)
        assert event.type == "done"
        assert service.jobs.wait(job.id) == event.job

    def test_job_that_does_not_exist_is_not_found(self, service):
        with pytest.raises(NotFound):
            service.jobs.wait("nobody")

    def test_job_that_is_deleted_is_not_found(self, service, in_thread, running):
        job = service.submit("a")
        updates: list[Job] = []
        waiting = in_thread(service.jobs.wait, job.id, on_update=updates.append)
        wait_until(lambda: updates)
        running.delete(f"/jobs/{job.id}")
        with pytest.raises(NotFound):
            waiting.result()


@pytest.mark.integration
class TestOutages:
    def test_service_is_restarted_in_mid_wait(self, connect, worker, settings, in_thread, redis, client):
        with ServiceOnAProxy(settings) as service:
            waiter = connect(service.proxy.url)
            job = waiter.submit("a")
            updates: list[Job] = []
            waiting = in_thread(waiter.jobs.wait, job.id, on_update=updates.append)
            wait_until(lambda: updates)
            service.stop()
            worker.succeed(worker.claim())
            refused = service.proxy.num_connections
            wait_until(lambda: service.proxy.num_connections > refused + 1)
            assert not waiting.done()
            service.start()
            assert waiting.result().status == "succeeded"

    def test_service_that_stays_away_is_unavailable_after_the_total_time(self, connect, settings, client):
        with ServiceOnAProxy(settings) as service:
            waiter = connect(service.proxy.url, retry=RetryPolicy(total_s=0.3, first_delay_s=0.01))
            job = waiter.submit("a")
            events = waiter.jobs.events(job.id)
            next(events)
            service.stop()
            with pytest.raises(ServiceUnavailable):
                list(events)

    def test_silent_connection_is_replaced(self, connect, proxy, worker, in_thread):
        job = connect(proxy.url).submit("a")
        proxy.stall_after = [HEAD]
        waiting = in_thread(connect(proxy.url, request_timeout_s=2).jobs.wait, job.id)
        wait_until(lambda: proxy.num_connections > 2)
        worker.succeed(worker.claim())
        assert waiting.result().status == "succeeded"


class TestPolling:
    @pytest.mark.parametrize(
        ("status", "code"), [(404, "not_found"), (405, "method_not_allowed"), (501, "x")]
    )
    def test_service_without_streams_is_polled(self, connect, status, code):
        replies = [b'{"id": "a", "status": "running"}', b'{"id": "a", "status": "succeeded"}']
        missing = sending(b'{"error": {"code": "%s", "message": ""}}' % code.encode(), status)

        def answer(request):
            (missing if request.path.endswith("/events") else sending(replies.pop(0)))(request)

        with host(answer) as url:
            events = list(connect(url.removesuffix("/file")).jobs.events("a"))
        assert [(event.type, event.job.status) for event in events] == [
            ("poll", "running"),
            ("poll", "succeeded"),
        ]

    def test_stream_that_a_proxy_holds_back_is_replaced_by_polling(self, connect, proxy, worker):
        job = connect(proxy.url).submit("a")
        worker.succeed(worker.claim())
        proxy.stall_after = [0]
        (event,) = connect(proxy.url, request_timeout_s=0.3).jobs.events(job.id)
        assert event.type == "poll"

    def test_job_is_polled_if_no_more_streams_are_allowed(self, connect, worker, settings, client):
        limited = settings.model_copy(update={"owner_event_streams": 1, "event_interval_s": 60})
        with serving(create_app(limited)) as port:
            url = f"http://127.0.0.1:{port}"
            first, second = connect(url), connect(url)
            finished = first.submit("a")
            worker.succeed(worker.claim())
            events = first.jobs.events(first.submit("b").id)  # open until the end: this job stays queued
            next(events)
            (event,) = second.jobs.events(finished.id)
            events.close()
        assert event.type == "poll"

    def test_poll_waits_as_long_as_the_service_asks(self, connect, slept):
        replies = [b'{"id": "a", "status": "running"}', b'{"id": "a", "status": "succeeded"}']

        def answer(request):
            if request.path.endswith("/events"):
                sending(b"{}", 404)(request)
                return
            content = replies.pop(0)
            request.send_response(200)
            request.send_header("Retry-After", "7")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)

        with host(answer) as url:
            assert connect(url.removesuffix("/file")).jobs.wait("a").status == "succeeded"
        assert slept == [0.0, 7.0]

    def test_unknown_status_is_carried_and_does_not_end_the_wait(self, connect):
        replies = [
            b'{"id": "a", "status": "paused", "mood": "good"}',
            b'{"id": "a", "status": "archived", "finished_at": "2030-01-01T00:00:00Z"}',
        ]

        def answer(request):
            (sending(b"{}", 404) if request.path.endswith("/events") else sending(replies.pop(0)))(request)

        with host(answer) as url:
            jobs = [event.job for event in connect(url.removesuffix("/file")).jobs.events("a")]
        assert [job.status for job in jobs] == ["paused", "archived"]
        assert jobs[0].model_extra == {"mood": "good"}


class TestEndingTheWait:
    def test_job_that_takes_too_long_is_a_timeout_and_continues(self, service):
        job = service.submit("a")
        with pytest.raises(Timeout) as caught:
            service.jobs.wait(job.id, timeout_s=0.2)
        assert caught.value.job_id == job.id
        assert service.jobs.get(job.id).status == "queued"

    @pytest.mark.parametrize(("cancels", "status"), [(True, "cancelled"), (False, "queued")])
    @pytest.mark.usefixtures("ctrl_c_interrupts")
    def test_ctrl_c_cancels_the_job_if_asked_to(self, live, redis, cancels, status):
        with Client(f"http://127.0.0.1:{live}") as service:
            job = service.submit("a")
            with pytest.raises(KeyboardInterrupt):
                service.jobs.wait(job.id, on_update=interrupt, cancel_on_interrupt=cancels)
            assert service.jobs.get(job.id).status == status

    @pytest.mark.parametrize(("cancels", "status"), [(True, "cancelled"), (False, "queued")])
    def test_cancelled_task_cancels_the_job_if_asked_to(self, live, redis, cancels, status):
        async def run():
            async with AsyncClient(f"http://127.0.0.1:{live}") as service:
                seen = asyncio.Event()
                job = await service.submit("a")
                waiting = asyncio.create_task(
                    service.jobs.wait(job.id, on_update=lambda _: seen.set(), cancel_on_interrupt=cancels)
                )
                await seen.wait()
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                return (await service.jobs.get(job.id)).status

        assert asyncio.run(run()) == status


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_parser_reads_events_in_chunks_of_any_size(size):
    text = ": hello\r\nid: 1\r\nevent: a\r\ndata: é\u2028\r\ndata:  b\r\n\r\n\n\rid: 2\rdata: c\r\rdata\n\n"
    stream = text.encode()
    parser = EventParser()
    events = [
        event for start in range(0, len(stream), size) for event in parser.feed(stream[start : start + size])
    ]
    assert events == [("1", "a", "é\u2028\n b"), ("2", "message", "c"), ("2", "message", "")]


@pytest.fixture
def ctrl_c_interrupts():
    """Raise KeyboardInterrupt on SIGINT, which a shell ignores for processes in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(_):
    """Do what Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(60)


class ServiceOnAProxy:
    """A service that can be stopped and started again, at one address."""

    def __init__(self, settings):
        self._settings = settings
        self._proxied = proxied(0)
        self._serving = None

    def __enter__(self):
        self.proxy = self._proxied.__enter__()
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        self._proxied.__exit__(None, None, None)

    def start(self):
        self._serving = serving(create_app(self._settings))
        self.proxy.target_port = self._serving.__enter__()

    def stop(self):
        if self._serving:
            self._serving.__exit__(None, None, None)
            self._serving = None
