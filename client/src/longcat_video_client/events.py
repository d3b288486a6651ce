"""Follow a job: read its stream of events across connections, or poll where there is no stream.

The state is kept here; `client` and `async_client` do the input and output.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from longcat_video_client import calls
from longcat_video_client.errors import (
    ApiError,
    LongCatVideoError,
    RateLimited,
    ServiceUnavailable,
    UnexpectedReply,
    retry_after_s,
)
from longcat_video_client.models import Job
from longcat_video_client.retries import Attempts, Deadline, RetryPolicy

_EVENT_STREAM = "text/event-stream"
_JOB_EVENTS = frozenset({"status", "progress", "done"})  # newer services may have others, with other data
_STREAM_MISSING = frozenset({404, 405, 406, 501})
_MAX_POLL_S = 5.0
_POLL_GROWTH = 1.3


@dataclass(frozen=True)
class Event:
    """A change of a job, and the whole job after it.

    Attributes:
        type: `status`, `progress` or `done`; `poll` if the job was read without a stream.
        id: resumes the stream after this event; None if the job was read without a stream.
    """

    type: str
    job: Job
    id: str | None = None


class EventParser:
    """Parse server-sent events that arrive in chunks of any size.

    Lines end with CR, LF or CRLF only. `str.splitlines`, and so httpx, would also split at other characters,
    which the texts of a job may contain.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._line = ""
        self._ended_with_cr = False
        self._id: str | None = None
        self._type = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[str | None, str, str]]:
        """Yield id, type and data of each event that is complete now."""
        text = self._decoder.decode(chunk)
        if not text:
            return
        if self._ended_with_cr and text.startswith("\n"):
            text = text[1:]
        self._ended_with_cr = text.endswith("\r")
        *lines, self._line = (self._line + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            if line:
                self._read_field(line)
            elif event := self._take():
                yield event

    def _read_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value

    def _take(self) -> tuple[str | None, str, str] | None:
        event = (self._id, self._type or "message", "\n".join(self._data)) if self._data else None
        self._type, self._data = "", []
        return event


class JobFollower:
    """The state of following one job until it has ended.

    The stream is opened again when it breaks, and resumed after the last event. Where there is no stream, or
    no more of them are allowed, the job is polled.
    """

    def __init__(
        self, job_id: str, last_event_id: str | None, policy: RetryPolicy, deadline: Deadline
    ) -> None:
        self.is_polling = False
        self.has_ended = False
        self._job_id = job_id
        self._last_event_id = last_event_id
        self._policy = policy
        self._attempts = Attempts(policy, deadline)
        self._deadline = deadline
        self._parser = EventParser()
        self._has_received = False
        self._poll_s = policy.first_delay_s
        self._asked_poll_s: float | None = None

    def call(self) -> calls.Call:
        """Return the next request."""
        if self.is_polling:
            return calls.get_job(self._job_id)
        return calls.stream_events(self._job_id, self._last_event_id)

    def opened(self, response: httpx.Response) -> None:
        """Begin to read a stream. Raise UnexpectedReply if the response is none."""
        self._parser = EventParser()
        self._has_received = False
        if not response.headers.get("Content-Type", "").startswith(_EVENT_STREAM):
            raise UnexpectedReply(f"{response.url} is not a stream of events")

    def received(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events in a chunk of the stream. Raise UnexpectedReply for data that is not a job."""
        self._has_received = True
        self._attempts.succeeded()
        for event_id, kind, data in self._parser.feed(chunk):
            if kind not in _JOB_EVENTS:
                continue
            try:
                job = Job.model_validate_json(data)
            except ValidationError as error:
                raise UnexpectedReply(f"an event of job {self._job_id} is not a job") from error
            self._last_event_id = event_id or self._last_event_id
            self.has_ended = kind == "done" or job.has_ended
            yield Event(kind, job, event_id)

    def polled(self, response: httpx.Response) -> Event:
        """Return the job that was read as an event. Raise UnexpectedReply."""
        job = calls.read(response, Job)
        self.has_ended = job.has_ended
        self._asked_poll_s = retry_after_s(response)
        return Event("poll", job)

    def delay_s(self) -> float:
        """Return the seconds until the next request, after a stream or a poll that ended without an error.

        Raises:
            ServiceUnavailable: streams have ended without any content for too long.
            Timeout: the deadline has passed.
        """
        if self.is_polling:
            delay_s = self._poll_s if self._asked_poll_s is None else self._asked_poll_s
            self._poll_s = min(self._poll_s * _POLL_GROWTH, _MAX_POLL_S)
            return self._deadline.limit(delay_s)
        if self._has_received:
            return self._deadline.limit(self._policy.first_delay_s)
        return self._attempts.delay_after(ServiceUnavailable("the stream ended", code="unreachable"))

    def delay_after(self, error: LongCatVideoError) -> float:
        """Return the seconds until the next request, after an error.

        Raises:
            LongCatVideoError: the error, if another request cannot help.
            Timeout: the deadline has passed.
        """
        self._deadline.check()
        if not self.is_polling and self._must_poll(error):
            self.is_polling = True
            return 0.0
        if self.is_polling or not isinstance(error, (RateLimited, ServiceUnavailable)):
            raise error  # a poll has been repeated already
        return self._attempts.delay_after(error)

    def _must_poll(self, error: LongCatVideoError) -> bool:
        """Check for an error that shows that there is no stream, or that none is let through by a proxy."""
        if isinstance(error, ApiError) and error.status in _STREAM_MISSING:
            return error.code != calls.JOB_NOT_FOUND
        is_silent = isinstance(error.__cause__, httpx.ReadTimeout) and not self._has_received
        return isinstance(error, (RateLimited, UnexpectedReply)) or is_silent
