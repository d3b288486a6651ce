"""Define the HTTP request of each method, and read the responses; without any input or output.

`client` and `async_client` send these calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from longcat_video_client.errors import NotFound, UnexpectedReply
from longcat_video_client.options import GenerateBody, new_idempotency_key

CONNECTION_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Every wait for a job holds a connection, so no number of them is too large."""

_CONNECT_TIMEOUT_S = 5.0

MAX_PAGE_SIZE = 100
JOB_NOT_FOUND = "job_not_found"
PRESET_NOT_FOUND = "preset_not_found"

Reply = TypeVar("Reply", bound=BaseModel)


def _no_body() -> AbstractContextManager[dict[str, Any]]:
    return nullcontext({})


@dataclass(frozen=True)
class Call:
    """A request that may be sent several times: `body` opens the arguments of httpx for each attempt."""

    method: str
    path: str
    params: Mapping[str, str | int | list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], AbstractContextManager[dict[str, Any]]] = _no_body

    def arguments(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of httpx. Only requests that change nothing follow redirects."""
        return {
            "method": self.method,
            "url": self.path,
            "params": dict(self.params),
            "headers": dict(self.headers),
            "follow_redirects": self.method == "GET",
            **body,
        }


def service_url(text: str) -> httpx.URL:
    """Return the URL of a service. Raise ValueError unless its scheme is http or https, and it has a host."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError(f"{text!r} is not a URL of a service, such as http://127.0.0.1:8000")
    return url


def timeouts(request_timeout_s: float) -> httpx.Timeout:
    """Return the timeouts of a request. One that cannot connect is given up early, since it is sent again."""
    return httpx.Timeout(request_timeout_s, connect=min(request_timeout_s, _CONNECT_TIMEOUT_S))


def generate(body: GenerateBody, idempotency_key: str | None) -> Call:
    """Submit a job. The key makes the call safe to repeat."""
    headers = {"Idempotency-Key": idempotency_key or new_idempotency_key()}
    return Call("POST", "/generate", headers=headers, body=body.open)


def capability() -> Call:
    """Read what can be requested."""
    return Call("GET", "/capability")


def get_job(job_id: str) -> Call:
    """Read a job."""
    return Call("GET", _job_path(job_id))


def usage() -> Call:
    """Read the GPU time of the last days."""
    return Call("GET", "/usage")


def list_presets() -> Call:
    """Read all presets."""
    return Call("GET", "/presets")


def save_preset(name: str, body: GenerateBody) -> Call:
    """Store options under a name."""
    return Call("PUT", _path("presets", name), body=body.open)


def delete_preset(name: str) -> Call:
    """Delete a preset."""
    return Call("DELETE", _path("presets", name))


def retry_job(job_id: str, body: GenerateBody, idempotency_key: str | None) -> Call:
    """Submit the request of a job again, with changes. The key makes the call safe to repeat."""
    headers = {"Idempotency-Key": idempotency_key or new_idempotency_key()}
    return Call("POST", f"{_job_path(job_id)}/retry", headers=headers, body=body.open)


class Filters(TypedDict, total=False):
    """Conditions on the jobs of a list.

    Attributes:
        status: `queued`, `running`, `uploading`, `succeeded`, `failed` or `cancelled`, or several of them.
        task: such as `text_to_video`.
        text: part of a prompt, in upper or lower case.
        created_after, created_before: times of submission, with a time zone.
        batch: the id of their batch.
        owner: whose jobs; those of others only with the key of an admin.
    """

    status: str | Sequence[str] | None
    task: str | None
    text: str | None
    created_after: datetime | None
    created_before: datetime | None
    batch: str | None
    owner: str | None


def list_jobs(filters: Filters, limit: int | None, after: str | None) -> Call:
    """Read a page of jobs, at most `limit` of them. Raises ValueError for a time without a time zone."""
    params: dict[str, str | int | list[str]] = {
        "limit": MAX_PAGE_SIZE if limit is None else min(limit, MAX_PAGE_SIZE)
    }
    params |= {name: _query(value) for name, value in {**filters, "after": after}.items() if value}
    return Call("GET", "/jobs", params)


def _query(value: object) -> str | list[str]:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.isoformat()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(each) for each in value]
    return str(value)


def cancel_job(job_id: str) -> Call:
    """Cancel a job. Cancelling it again changes nothing."""
    return Call("POST", f"{_job_path(job_id)}/cancel")


def cancel_batch(batch_id: str) -> Call:
    """Cancel the jobs of a batch. Cancelling them again changes nothing."""
    return Call("POST", f"{_path('batches', batch_id)}/cancel")


def delete_job(job_id: str) -> Call:
    """Delete a job."""
    return Call("DELETE", _job_path(job_id))


def stream_events(job_id: str, last_event_id: str | None) -> Call:
    """Watch a job, from after an event if one is given."""
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
    headers |= {"Last-Event-ID": last_event_id} if last_event_id else {}
    return Call("GET", f"{_job_path(job_id)}/events", headers=headers)


def get_timeline(job_id: str) -> Call:
    """Read the trace of a finished job."""
    return Call("GET", f"{_job_path(job_id)}/timeline")


def get_video(job_id: str, start: int) -> Call:
    """Read the video from the byte `start` on."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    return Call("GET", f"{_job_path(job_id)}/video", headers=headers)


def read(response: httpx.Response, model: type[Reply]) -> Reply:
    """Return the content of a response. Raise UnexpectedReply if it has another form."""
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise UnexpectedReply(f"{response.url} is not a LongCat-Video service") from error


def read_object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in a response. Raise UnexpectedReply if there is none."""
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UnexpectedReply(f"{response.url} is not a LongCat-Video service")
    return found


def check_deleted(response: httpx.Response) -> None:
    """Raise UnexpectedReply for a success of another kind, such as the page of a proxy."""
    if response.status_code not in {httpx.codes.ACCEPTED, httpx.codes.NO_CONTENT}:
        raise UnexpectedReply(f"{response.url} is not a LongCat-Video service")


def _job_path(job_id: str) -> str:
    """Return the path of a job. Raise NotFound for an id that would lead to another path."""
    return _path("jobs", job_id)


def _path(collection: str, name: str) -> str:
    if name in {"", ".", ".."}:
        code = PRESET_NOT_FOUND if collection == "presets" else JOB_NOT_FOUND
        raise NotFound(f"there is no {name!r} in {collection}", code=code)
    return f"/{collection}/{quote(name, safe='')}"
