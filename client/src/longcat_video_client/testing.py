"""A fake service for tests of programs that use the client. It runs in the process of the test.

    fake = FakeService(Success(video=b"..."), Failure("out_of_memory"))
    client = Client("http://fake", transport=fake)

The first job succeeds, the second fails, and all later ones succeed. `FakeService` shows what was requested,
and can refuse requests. It knows the names of options, but not their rules.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx

from longcat_video_client.models import FINAL_STATUSES, Job
from longcat_video_client.options import INPUTS, Options

_FIELDS = Options.__annotations__.keys() | {"prompt", "prompts"}
_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass(frozen=True)
class Success:
    """A job that succeeds with this video."""

    video: bytes = b"a video"


@dataclass(frozen=True)
class Failure:
    """A job that fails while it is running."""

    code: str = "generation_failed"
    message: str = "the job was told to fail"
    retryable: bool = False


@dataclass(frozen=True)
class Unfinished:
    """A job that runs until it is cancelled."""


Outcome = Success | Failure | Unfinished


@dataclass(frozen=True)
class Submission:
    """A request for a video that the fake accepted: its fields, and the content of its files by field."""

    fields: dict[str, Any]
    files: dict[str, bytes]
    idempotency_key: str


@dataclass
class _FakeJob:
    outcome: Outcome
    view: dict[str, Any]
    next_states: deque[dict[str, Any]] = field(default_factory=deque)


class FakeService(httpx.MockTransport):
    """A transport for `Client` and `AsyncClient` that answers as the service does.

    Each time that a job is read, it advances: from queued to running to its outcome. No time passes.

    Args:
        *outcomes: the outcomes of the jobs in the order of their submission. Later jobs succeed.
        run_s: how long each job takes by the times that it shows. It decides which deadlines are met.

    Attributes:
        submissions: all requests for videos that were accepted.
    """

    def __init__(self, *outcomes: Outcome, run_s: float = 0.0) -> None:
        super().__init__(self._answer)
        self._run_s = run_s
        self.submissions: list[Submission] = []
        self._outcomes = deque(outcomes)
        self._jobs: dict[str, _FakeJob] = {}
        self._ids_by_key: dict[str, str] = {}
        self._num_jobs = 0
        self._presets: dict[str, dict[str, Any]] = {}
        self._refusals: deque[Callable[[httpx.Request], httpx.Response]] = deque()

    def refuse_next(
        self, status: int, code: str, *, field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        """Answer the next request with an error. Several calls refuse several requests."""
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self._refusals.append(lambda _: _error(status, code, "refused by the test", field, headers))

    def disconnect_next(self) -> None:
        """Break the connection of the next request, before anything is done."""

        def disconnect(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("disconnected by the test", request=request)

        self._refusals.append(disconnect)

    def _answer(self, request: httpx.Request) -> httpx.Response:  # noqa: PLR0911 - one for each route
        if self._refusals:
            return self._refusals.popleft()(request)
        route = (request.method, *request.url.path.strip("/").split("/"))
        if route == ("POST", "generate"):
            return self._generate(request)
        if route == ("GET", "capability"):
            return httpx.Response(200, json=_CAPABILITY)
        if route == ("GET", "usage"):
            return httpx.Response(200, json={"usage": []})
        if route == ("GET", "jobs"):
            return self._list(request.url.params)
        if route[1] == "presets":
            return self._answer_about_presets(request, route[2:])
        if len(route) == 4 and (route[0], route[1], route[3]) == ("POST", "batches", "cancel"):
            return self._cancel_batch(route[2])
        if len(route) > 2 and route[1] == "jobs":
            job = self._jobs.get(route[2])
            if job is None:
                return _error(404, "job_not_found", "there is no such job")
            return self._answer_about(job, (route[0], *route[3:]), request)
        return _error(404, "not_found", "Not Found")

    def _answer_about(  # noqa: PLR0911 - one for each route
        self, job: _FakeJob, route: tuple[str, ...], request: httpx.Request
    ) -> httpx.Response:
        if route == ("GET",):
            return httpx.Response(200, json=_advance(job))
        if route == ("GET", "events"):
            return httpx.Response(
                200, headers={"Content-Type": "text/event-stream"}, content=b"".join(_events(job))
            )
        if route == ("GET", "video"):
            return _video(job, request.headers.get("Range", ""))
        if route == ("GET", "timeline"):
            return httpx.Response(200, json={"traceEvents": []})
        if route == ("POST", "retry"):
            fields, files = _read_body(request)
            return self._submit({**_request_of(job.view), **fields}, files, request)
        if route == ("POST", "cancel"):
            if job.view["status"] in {"succeeded", "failed"}:
                return _error(409, "job_ended", "the job has ended")
            _cancel(job)
            return httpx.Response(200, json=job.view)
        if route == ("DELETE",):
            del self._jobs[job.view["id"]]
            return httpx.Response(204)
        return _error(404, "not_found", "Not Found")

    def _answer_about_presets(self, request: httpx.Request, names: tuple[str, ...]) -> httpx.Response:
        if request.method == "GET" and not names:
            presets = [{"name": name, "options": self._presets[name]} for name in sorted(self._presets)]
            return httpx.Response(200, json={"presets": presets})
        if request.method == "PUT" and len(names) == 1:
            fields, files = _read_body(request)
            if unknown := sorted(files.keys() | (fields.keys() - _FIELDS) | (fields.keys() & set(INPUTS))):
                return _error(422, "invalid_request", f"{unknown[0]}: is unknown", unknown[0])
            self._presets[names[0]] = fields
            return httpx.Response(200, json={"name": names[0], "options": fields})
        if request.method == "DELETE" and len(names) == 1:
            if self._presets.pop(names[0], None) is None:
                return _error(404, "preset_not_found", "there is no such preset")
            return httpx.Response(204)
        return _error(404, "not_found", "Not Found")

    def _generate(self, request: httpx.Request) -> httpx.Response:
        return self._submit(*_read_body(request), request)

    def _submit(
        self, fields: dict[str, Any], files: dict[str, bytes], request: httpx.Request
    ) -> httpx.Response:
        if wrong := _wrong_field(fields, files):
            return _error(422, "invalid_request", ": ".join(wrong), wrong[0])
        key = request.headers.get("Idempotency-Key", "")
        if key and (known := self._jobs.get(self._ids_by_key.get(key, ""))):
            return httpx.Response(202, json=known.view, headers={"Idempotent-Replayed": "true"})
        for name in INPUTS:
            source = fields.get(name)
            if isinstance(source, dict) and "job" in source and (refusal := self._refusal(name, source)):
                return refusal
        job_ids = self._new_ids(fields.get("num_videos") or 1)
        batch = {"id": f"batch-{job_ids[0]}", "job_ids": job_ids} if len(job_ids) > 1 else None
        first_seed = fields.get("seed") or 0
        views = [
            {**_new_view(job_id, {**fields, "seed": first_seed + number}, files, self._run_s), "batch": batch}
            for number, job_id in enumerate(job_ids)
        ]
        if views[0]["warnings"] and fields.get("refuse_if_late"):
            return _error(409, "deadline_too_early", views[0]["warnings"][0], "deadline_s")
        self.submissions.append(Submission(fields, files, key))
        for view in views:
            outcome = self._outcomes.popleft() if self._outcomes else Success()
            self._jobs[view["id"]] = _FakeJob(outcome, view, deque(_states_after(view, outcome)))
        self._ids_by_key[key] = job_ids[0]
        return httpx.Response(202, json=self._jobs[job_ids[0]].view)

    def _new_ids(self, count: int) -> list[str]:
        self._num_jobs += count
        return [f"{number:032x}" for number in range(self._num_jobs - count + 1, self._num_jobs + 1)]

    def _cancel_batch(self, batch_id: str) -> httpx.Response:
        jobs = [job for job in self._jobs.values() if _batch_of(job.view) == batch_id]
        if not jobs:
            return _error(404, "job_not_found", "there is no such batch")
        for job in jobs:
            if job.view["status"] not in FINAL_STATUSES:
                _cancel(job)
        return httpx.Response(200, json={"jobs": [job.view for job in jobs]})

    def _refusal(self, name: str, source: dict[str, Any]) -> httpx.Response | None:
        """Return the error for an input that is the video of a job, None if it can be used."""
        field = f"{name}.job"
        job = self._jobs.get(source["job"])
        if job is None:
            return _error(422, "invalid_input", f"{field}: there is no such job", field)
        status = job.view["status"]
        if job.view["result"] is None:
            return _error(409, "job_not_ready", f"{field}: the job is {status} and has no video", field)
        return None

    def _list(self, params: httpx.QueryParams) -> httpx.Response:
        views = [job.view for job in reversed(self._jobs.values())]
        if after := params.get("after"):
            ids = [view["id"] for view in views]
            if after not in ids:
                return _error(404, "job_not_found", "there is no such job")
            views = views[ids.index(after) + 1 :]
        for name in ("status", "task"):
            if wanted := params.get_list(name):
                views = [view for view in views if view[name] in wanted]
        if batch := params.get("batch"):
            views = [view for view in views if _batch_of(view) == batch]
        part = params.get("text", "").casefold()
        views = [view for view in views if any(part in text.casefold() for text in _prompts(view["request"]))]
        page = views[: int(params.get("limit", 20))]
        return httpx.Response(
            200,
            json={"jobs": page, "next": page[-1]["id"] if len(page) < len(views) else None, "previous": None},
        )


def signed_webhook(
    secret: str, job: Job, event: str = "succeeded", *, sent_at_s: int | None = None
) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a webhook about a job, as the service sends it.

    Args:
        secret: `whsec_…`.
        job: the job.
        event: `started`, `succeeded`, `failed` or `cancelled`.
        sent_at_s: the Unix time; by default now.
    """
    sent_at = str(int(time.time()) if sent_at_s is None else sent_at_s)
    payload = {"type": f"job.{event}", "timestamp": _now(), "data": job.model_dump(mode="json")}
    body = json.dumps(payload).encode()
    webhook_id = hashlib.sha256(body).hexdigest()
    signed = f"{webhook_id}.{sent_at}.".encode() + body
    signature = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, "sha256")
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": sent_at,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }
    return headers, body


def _wrong_field(fields: dict[str, Any], files: dict[str, bytes]) -> tuple[str, str] | None:
    """Return a field for which a request is refused, and why."""
    if unknown := sorted((fields.keys() | files.keys()) - _FIELDS):
        return unknown[0], "is unknown"
    if not (fields.get("prompt") or fields.get("prompts")):
        return "prompt", "is missing"
    if (fields.get("num_frames") or 1) % 4 != 1:
        return "num_frames", "must be one more than a multiple of 4"
    return None


def _request_of(view: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the request of a job that a new request can have."""
    return {name: value for name, value in view["request"].items() if name in _FIELDS and value is not None}


def _batch_of(view: dict[str, Any]) -> str | None:
    return str(view["batch"]["id"]) if view["batch"] else None


def _advance(job: _FakeJob) -> dict[str, Any]:
    """Return the job as it is, and let it advance to its next state."""
    view = job.view
    if job.next_states:
        job.view = job.next_states.popleft()
    return view


def _cancel(job: _FakeJob) -> None:
    job.next_states.clear()
    job.view = {
        **job.view,
        "status": "cancelled",
        "queue_position": None,
        "finished_at": _now(),
        "predicted_finish_at": None,
    }


def _events(job: _FakeJob) -> Iterator[bytes]:
    number, more = 1, True
    while more:
        more = bool(job.next_states)
        view = _advance(job)
        kind = "done" if view["status"] in FINAL_STATUSES else "status"
        yield f"id: {number}-0\nevent: {kind}\ndata: {json.dumps(view)}\n\n".encode()
        number += 1


def _video(job: _FakeJob, requested: str) -> httpx.Response:
    if job.view["result"] is None or not isinstance(job.outcome, Success):
        return _error(409, "job_not_ready", f"the job is {job.view['status']} and has no video")
    video, found = job.outcome.video, _RANGE.fullmatch(requested)
    if not found:
        return httpx.Response(200, content=video)
    start = int(found[1])
    if start >= len(video):
        return _error(416, "range_not_satisfiable", f"the file has {len(video)} bytes")
    headers = {"Content-Range": f"bytes {start}-{len(video) - 1}/{len(video)}"}
    return httpx.Response(206, content=video[start:], headers=headers)


def _error(
    status: int, code: str, message: str, field: str | None = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    error = {"code": code, "message": message} | ({"field": field} if field else {})
    return httpx.Response(status, json={"error": error}, headers=headers)


def _read_body(request: httpx.Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the fields and the files of JSON or of a form."""
    content_type = request.headers.get("Content-Type", "")
    if "boundary=" not in content_type:
        return json.loads(request.content), {}
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    boundary = b"--" + content_type.partition("boundary=")[2].encode()
    for part in request.content.split(boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        content = content.removesuffix(b"\r\n")
        found = re.search(rb'name="([^"]*)"', head)
        name = found[1].decode() if found else ""
        if b"filename=" in head:
            files[name] = content
        elif name == "prompts":
            fields.setdefault(name, []).append(content.decode())
        else:
            fields[name] = _form_value(content.decode())
    return fields, files


def _form_value(text: str) -> object:
    """Return a form field as JSON would have it. Texts stand in forms as they are."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _new_view(job_id: str, fields: dict[str, Any], files: dict[str, bytes], run_s: float) -> dict[str, Any]:
    created_at, deadline_s = datetime.now(timezone.utc), fields.get("deadline_s")
    is_late = deadline_s is not None and run_s > deadline_s
    rule = (
        f"deadline_s: the video is expected {math.ceil(run_s)} s after submission, later than {deadline_s} s"
    )
    inputs = {
        name: _input_view(job_id, fields.get(name), files.get(name))
        for name in INPUTS
        if name in fields or name in files
    }
    given = {name: value for name, value in fields.items() if name in _REQUEST}
    num_segments = max(fields.get("num_segments", 1), len(fields.get("prompts", ())))
    task = fields.get("task") or _task(inputs.keys(), num_segments)
    return {
        "id": job_id,
        "owner": "",
        "status": "queued",
        "task": task,
        "request": {**_REQUEST, "task": task, "num_segments": num_segments, **given, **inputs},
        "progress": None,
        "queue_position": 1,
        "waiting_for": None,
        "batch": None,
        "warnings": [rule] if is_late else [],
        "attempt": 0,
        "created_at": created_at.isoformat(),
        "started_at": None,
        "finished_at": None,
        "deadline_at": None if deadline_s is None else _later(created_at, deadline_s),
        "deadline_met": None,
        "predicted_finish_at": _later(created_at, run_s),
        "error": None,
        "result": None,
        "timings_s": {},
        "gpu_s": 0.0,
        "gpu_phases_s": {},
        "lost_gpu_s": 0.0,
        "cost": None,
        "metadata": fields.get("metadata", {}),
        "expires_at": None,
    }


def _prompts(request: dict[str, Any]) -> list[str]:
    return request["prompts"] or [request["prompt"]]


def _task(inputs: Any, num_segments: int) -> str:  # noqa: ANN401 - the keys of a dict
    if num_segments > 1:
        return "long_video"
    if "video" in inputs:
        return "video_continuation"
    return "image_to_video" if "image" in inputs else "text_to_video"


def _input_view(job_id: str, source: Any, content: bytes | None) -> dict[str, Any]:  # noqa: ANN401 - as sent
    known = content or b""
    of_job = source if isinstance(source, dict) and "job" in source else {}
    return {
        "job_id": job_id,
        "media_type": "application/octet-stream",
        "size_bytes": len(known),
        "sha256": hashlib.sha256(known).hexdigest(),
        "width": 96,
        "height": 64,
        "num_frames": 1,
        "source_job_id": of_job.get("job"),
        "source_frame": of_job.get("frame"),
    }


def _states_after(queued: dict[str, Any], outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Yield the states of a job after `queued`."""
    progress = {"step": 1, "num_steps": 2, "segment": 0, "num_segments": 1, "fraction": 0.5, "eta_s": 1.0}
    running = {
        **queued,
        "status": "running",
        "queue_position": None,
        "attempt": 1,
        "started_at": _now(),
        "progress": {"phase": "denoise", **progress},
    }
    yield running
    if isinstance(outcome, Unfinished):
        return
    finished_at = datetime.fromisoformat(queued["predicted_finish_at"])
    ended = {
        **running,
        "finished_at": finished_at.isoformat(),
        "expires_at": _later(finished_at, 7 * 86400.0),
        "predicted_finish_at": None,
        "timings_s": {"denoise": 1.0},
    }
    deadline_at = queued["deadline_at"] and datetime.fromisoformat(queued["deadline_at"])
    in_time = deadline_at and finished_at <= deadline_at
    if isinstance(outcome, Failure):
        error = {"code": outcome.code, "message": outcome.message, "retryable": outcome.retryable}
        yield {**ended, "status": "failed", "error": error, "deadline_met": deadline_at and False}
    else:
        result = _result(queued, outcome.video)
        yield {**ended, "status": "succeeded", "result": result, "deadline_met": in_time}


def _result(view: dict[str, Any], video: bytes) -> dict[str, Any]:
    request = view["request"]
    return {
        "video_url": f"/jobs/{view['id']}/video",
        "thumbnail_url": f"/jobs/{view['id']}/thumbnail",
        "width": request["width"],
        "height": request["height"],
        "num_frames": request["num_frames"],
        "fps": request["fps"],
        "duration_s": request["num_frames"] / request["fps"],
        "size_bytes": len(video),
        "sha256": hashlib.sha256(video).hexdigest(),
        "seed": request["seed"],
        "dtype": "float32",
        "model": "LongCat-Video",
        "weights": {},
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def _later(time: datetime, seconds: float) -> str:
    return (time + timedelta(seconds=seconds)).isoformat()


_REQUEST: dict[str, Any] = {
    "task": None,
    "prompt": None,
    "prompts": None,
    "negative_prompt": None,
    "model": None,
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "num_segments": 1,
    "num_condition_frames": 0,
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "distilled": False,
    "quality": "exact",
    "refine": False,
    "refinement": None,
    "t_thresh": None,
    "spatial_refine_only": False,
    "condition_cache": True,
    "enhance_hf": True,
    "fps": 15,
    "seed": 0,
    "image": None,
    "video": None,
    "condition_video": None,
    "priority": "normal",
    "deadline_s": None,
    "webhook_url": None,
    "webhook_events": None,
}

_CAPABILITY: dict[str, Any] = {
    "schema_version": 2,
    "model": "LongCat-Video",
    "tasks": ["text_to_video", "image_to_video", "video_continuation", "long_video", "refine"],
    "limits": {"default_size": [64, 96], "default_num_frames": 17, "max_num_frames": 93},
    "loras": [],
    "context_parallel": 1,
    "device": "cpu",
    "dtype": "float32",
    "weights": {},
    "gpu": None,
    "gpu_memory_gib": None,
    "order_versions": [1, 2],
    "pools": [],
}
