"""The client for programs with asyncio. `client` has the same methods.

Only input, output and waiting are here. `calls`, `events`, `downloads` and `retries` decide what is sent and
what a response means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx

from longcat_video_client import calls
from longcat_video_client.downloads import Destination, Download, check_destination, opened_for_writing
from longcat_video_client.errors import (
    ApiError,
    LongCatVideoError,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    checked,
    errors_of_job,
    translated_errors,
)
from longcat_video_client.events import Event, JobFollower
from longcat_video_client.models import BatchJobs, Capability, DayUsage, Job, JobPage, Preset, Usage
from longcat_video_client.models import Presets as PresetsReply
from longcat_video_client.options import GenerateBody, check_single
from longcat_video_client.retries import Attempts, Deadline, RetryPolicy

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from longcat_video_client.options import Options


class AsyncClient:
    """A client of one service, which the tasks of one event loop may share.

    Use it as a context manager, or call `close`.

    Args:
        base_url: the URL of the service, which begins with http:// or https://.
        api_key: sent with each request; None for a service without keys.
        retry: how long requests are sent again after temporary errors. Every request is safe to repeat.
        request_timeout_s: the longest silence of the service within one request. A connection
            is awaited for 5 s.
        transport: replaces the network, for tests (`longcat_video_client.testing`).

    Methods raise the errors of `longcat_video_client.errors`: an ApiError if the service refuses a request,
    and ServiceUnavailable if it could not be reached for as long as `retry` says.

    Raises:
        ValueError: `base_url` is not a URL of a service.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - immutable
        request_timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(
            base_url=calls.service_url(base_url),
            headers=headers,
            timeout=calls.timeouts(request_timeout_s),
            limits=calls.CONNECTION_LIMITS,
            transport=transport,
        )
        self._connection = _Connection(self._http, retry, request_timeout_s)
        self.jobs = AsyncJobs(self._connection)
        self.presets = AsyncPresets(self._connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def generate(  # noqa: PLR0913 - all but one are keywords
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        output: Destination | None = None,
        on_update: Callable[[Job], object] | None = None,
        timeout_s: float | None = None,
        cancel_on_interrupt: bool = False,
        idempotency_key: str | None = None,
        extra: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Request a video, wait until it is finished, save it, and return its job.

        Args:
            prompt: what the video should show; a sequence has one for each segment.
            output: where the video is saved; None saves nothing.
            on_update: called with the job when it is queued and whenever it changes.
            timeout_s: how long to wait for the job.
            cancel_on_interrupt: cancel the job if the task is cancelled while it waits.
            idempotency_key: identifies the request over several calls; by default each call is a new one.
            extra: fields that a newer service knows and `Options` does not.
            **options: see `Options`.

        Raises:
            JobFailed: the job failed.
            JobCancelled: the job was cancelled.
            Timeout: the job did not end in time; it continues.
            IncompleteDownload: the video that arrived is not the one that the job made.
            OSError: a file cannot be read, or `output` cannot be written: known before anything is requested,
                unless the disk gets full.
            TypeError: several videos are requested; `submit` and `jobs.wait_all` make them.

        Exceptions of any kind have the attribute `job_id` once the job was submitted.
        """
        check_single(options)
        if output is not None:
            check_destination(output)
        job = await self.submit(prompt, idempotency_key=idempotency_key, extra=extra, **options)
        with errors_of_job(job.id):
            if on_update:
                on_update(job)
            job = await self.jobs.wait(
                job.id, on_update=on_update, timeout_s=timeout_s, cancel_on_interrupt=cancel_on_interrupt
            )
            job.result_or_raise()
            if output is not None:
                await self.jobs.download(job, output)
        return job

    async def submit(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        idempotency_key: str | None = None,
        extra: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Request a video and return its job at once. The arguments are those of `generate`.

        With `num_videos`, return the first of several jobs. Its `batch` names all of them, and
        `jobs.wait_all` waits for them.
        """
        body = GenerateBody(prompt, options, extra)
        return calls.read(await self._connection.send(calls.generate(body, idempotency_key)), Job)

    async def usage(self) -> tuple[DayUsage, ...]:
        """Return the GPU time of each day of the last month, without days on which none was used."""
        return calls.read(await self._connection.send(calls.usage()), Usage).usage

    async def capability(self) -> Capability:
        """Return what can be requested: tasks, sizes, lengths and defaults."""
        return calls.read(await self._connection.send(calls.capability()), Capability)


class AsyncJobs:
    """The jobs of a service; `AsyncClient.jobs`."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def get(self, job_id: str) -> Job:
        """Return a job."""
        return calls.read(await self._connection.send(calls.get_job(job_id)), Job)

    async def retry(
        self,
        job_id: str,
        *,
        prompt: str | Sequence[str] | None = None,
        idempotency_key: str | None = None,
        extra: Mapping[str, Any] | None = None,
        **changes: Unpack[Options],
    ) -> Job:
        """Request the video of a job again, as a new job: with the same seed, options and inputs.

        Args:
            job_id: the job to repeat, whether it succeeded or not.
            prompt: another prompt.
            idempotency_key: identifies the request over several calls; by default each call is a new one.
            extra: fields that a newer service knows, or None for fields that are to have their defaults, such
                as `{"seed": None}` for another random seed.
            **changes: options that differ; see `Options`.
        """
        body = GenerateBody(prompt, changes, extra)
        return calls.read(await self._connection.send(calls.retry_job(job_id, body, idempotency_key)), Job)

    async def list(self, *, limit: int | None = None, **filters: Unpack[calls.Filters]) -> AsyncIterator[Job]:
        """Yield jobs, the newest first, reading page after page as needed.

        Args:
            limit: the largest number of jobs; None for all.
            **filters: only jobs that fulfil these conditions; see `Filters`.
        """
        after: str | None = None
        while True:
            page = calls.read(await self._connection.send(calls.list_jobs(filters, limit, after)), JobPage)
            for job in page.jobs:
                yield job
            after = page.next
            if limit is not None:
                limit -= len(page.jobs)
                if limit <= 0:
                    return
            if after is None:
                return

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job and return it. A running job is `cancelled` only when it has stopped."""
        return calls.read(await self._connection.send(calls.cancel_job(job_id)), Job)

    async def cancel_batch(self, batch_id: str) -> tuple[Job, ...]:
        """Cancel all jobs of a batch that have not ended, and return all jobs of the batch."""
        return calls.read(await self._connection.send(calls.cancel_batch(batch_id)), BatchJobs).jobs

    async def delete(self, job_id: str) -> None:
        """Delete a job and its files. A running job is cancelled first."""
        attempts = self._connection.attempts()
        try:
            calls.check_deleted(await self._connection.send(calls.delete_job(job_id), attempts))
        except NotFound:
            if attempts.num_failed == 0:  # otherwise, an attempt deleted it whose response was lost
                raise

    async def events(
        self, job_id: str, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield each change of a job until it has ended, over as many connections as it takes.

        Args:
            job_id: the job to follow.
            last_event_id: continue after this event.
            timeout_s: how long to follow the job.

        Raises:
            Timeout: the job did not end in time.
        """
        deadline = Deadline(job_id, timeout_s)
        follower = JobFollower(job_id, last_event_id, self._connection.retry, deadline)
        while True:
            try:
                if follower.is_polling:
                    attempts = self._connection.attempts(deadline)
                    yield follower.polled(await self._connection.send(follower.call(), attempts))
                    if follower.has_ended:
                        return
                else:
                    async with self._connection.stream(follower.call(), deadline) as response:
                        follower.opened(response)
                        async for chunk in response.aiter_bytes():
                            for event in follower.received(chunk):
                                yield event
                            if follower.has_ended:
                                return
                            deadline.check()
                delay_s = follower.delay_s()
            except LongCatVideoError as error:
                delay_s = follower.delay_after(error)
            await asyncio.sleep(delay_s)

    async def wait(
        self,
        job_id: str,
        *,
        on_update: Callable[[Job], object] | None = None,
        timeout_s: float | None = None,
        cancel_on_interrupt: bool = False,
    ) -> Job:
        """Wait until a job has ended, in whichever way, and return it.

        Args:
            job_id: the job to wait for.
            on_update: called with the job whenever it changes.
            timeout_s: how long to wait.
            cancel_on_interrupt: cancel the job if the task is cancelled, as Ctrl-C does under `asyncio.run`.

        Raises:
            Timeout: the job did not end in time; it continues.
        """
        job: Job | None = None
        try:
            async with aclosing(self.events(job_id, timeout_s=timeout_s)) as events:
                async for event in events:
                    job = event.job
                    if on_update:
                        on_update(job)
        except asyncio.CancelledError:
            if cancel_on_interrupt:
                with suppress(LongCatVideoError):
                    await self._connection.send(calls.cancel_job(job_id), Attempts(RetryPolicy(total_s=0)))
            raise
        assert job
        return job

    async def wait_all(
        self,
        job: Job,
        *,
        on_update: Callable[[Job], object] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Job, ...]:
        """Wait until all jobs that were requested together have ended, in whichever way, and return them.

        Args:
            job: one of them, such as `submit` returns for several videos.
            on_update: called with a job whenever it changes.
            timeout_s: how long to wait for all of them.

        Raises:
            Timeout: a job did not end in time; it continues.
        """
        deadline = Deadline(job.id, timeout_s)
        return tuple(
            [
                await self.wait(job_id, on_update=on_update, timeout_s=deadline.left_s())
                for job_id in job.all_ids
            ]
        )

    async def download(self, job: Job | str, destination: Destination) -> None:
        """Save the video of a job. A path is replaced only when the video has arrived completely.

        Args:
            job: the job that made the video, or its id.
            destination: a path, or a file opened for writing. A file gets the bytes as they arrive.

        Raises:
            JobFailed: the job failed.
            JobCancelled: the job was cancelled.
            JobNotReady: the job has not ended.
            IncompleteDownload: the video that arrived is not the one that the job made.
            OSError: the file cannot be written.
        """
        check_destination(destination)
        download = Download(await self.get(job) if isinstance(job, str) else job, self._connection.retry)
        with opened_for_writing(destination) as file:
            while not download.is_complete:
                failure: ApiError | None = None
                try:
                    async with self._connection.stream(download.call()) as response:
                        download.opened(response)
                        async for chunk in response.aiter_bytes():
                            await asyncio.to_thread(file.write, download.received(chunk))
                except ApiError as error:
                    failure = error
                if not download.is_complete:
                    await asyncio.sleep(download.delay_after(failure))
            download.check()

    async def timeline(self, job_id: str) -> dict[str, Any]:
        """Return the trace of a finished job, which Perfetto can show."""
        return calls.read_object(await self._connection.send(calls.get_timeline(job_id)))


class AsyncPresets:
    """Named options of requests, which the service keeps for their owner; `AsyncClient.presets`."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def all(self) -> tuple[Preset, ...]:
        """Return all presets in the order of their names."""
        return calls.read(await self._connection.send(calls.list_presets()), PresetsReply).presets

    async def get(self, name: str) -> Preset:
        """Return a preset. Raise NotFound."""
        for preset in await self.all():
            if preset.name == name:
                return preset
        raise NotFound(f"there is no preset {name!r}", code=calls.PRESET_NOT_FOUND, status=404)

    async def save(
        self,
        name: str,
        *,
        prompt: str | Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Preset:
        """Store options under a name, in place of those that it had. The arguments are those of `submit`.

        Input files cannot be stored. Raises Conflict if there are too many presets.
        """
        body = GenerateBody(prompt, options, extra)
        return calls.read(await self._connection.send(calls.save_preset(name, body)), Preset)

    async def delete(self, name: str) -> None:
        """Delete a preset. Raise NotFound."""
        attempts = self._connection.attempts()
        try:
            calls.check_deleted(await self._connection.send(calls.delete_preset(name), attempts))
        except NotFound:
            if attempts.num_failed == 0:  # otherwise, an attempt deleted it whose response was lost
                raise


class _Connection:
    """Sends calls, again after temporary errors."""

    def __init__(self, http: httpx.AsyncClient, retry: RetryPolicy, request_timeout_s: float) -> None:
        self.retry = retry
        self._http = http
        self._request_timeout_s = request_timeout_s

    def attempts(self, deadline: Deadline | None = None) -> Attempts:
        """Return the attempts of a new call."""
        return Attempts(self.retry, deadline)

    async def send(self, call: calls.Call, attempts: Attempts | None = None) -> httpx.Response:
        """Return the response of the first attempt that succeeds. Raise ApiError, UnexpectedReply."""
        attempts = attempts or self.attempts()
        while True:
            try:
                with translated_errors(), call.body() as body:
                    response = await self._http.request(**call.arguments(body))
                return checked(response)
            except (RateLimited, ServiceUnavailable) as error:
                delay_s = attempts.delay_after(error)
            await asyncio.sleep(delay_s)

    @asynccontextmanager
    async def stream(
        self, call: calls.Call, deadline: Deadline | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send a call once and yield the response, whose content has not been read.

        Errors of httpx while the content is read are translated, too.

        Raises:
            ApiError: the service refused the request, or cannot be reached.
            UnexpectedReply: there is no usable response.
        """
        timeout_s = self._request_timeout_s
        if deadline:
            timeout_s = deadline.limit(timeout_s)
        arguments = call.arguments({"timeout": calls.timeouts(timeout_s)})
        follow_redirects = arguments.pop("follow_redirects")
        with translated_errors():
            request = self._http.build_request(**arguments)
            response = await self._http.send(request, stream=True, follow_redirects=follow_redirects)
            async with aclosing(response):
                if not response.is_success:
                    await response.aread()
                yield checked(response)
