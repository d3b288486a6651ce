"""Requests that may be sent twice: the header `Idempotency-Key` of every POST that creates a job.

The same key and the same request give the same job, however often and however concurrently they come, for
as long as the job is kept. Keys of different owners are different keys. What makes that exact is in
`jobs.store.idempotency`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

from fastapi import Header, Response

from jobs.errors import Unavailable
from jobs.record import Job
from jobs.store.idempotency import Hold
from service.backend import Backend
from service.inputs.body import Body

_CHUNK_BYTES = 1 << 20
REPLAYED = "Idempotent-Replayed"
REPLAYED_HEADER: dict[str, dict[str, Any]] = {
    REPLAYED: {
        "description": "`true` if this key and this request made the job before",
        "schema": {"type": "string", "enum": ["true"]},
    }
}

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description="Of your choice, new for each video; a request sent twice with it makes one job.",
    ),
]


@dataclass(frozen=True)
class Asked:
    """A request as it is told from others: where it came in, with which key and what body."""

    route: str
    body: Body
    key: str | None

    def fingerprint(self) -> str:
        """A digest of what is asked for; how a form was cut into parts does not count."""
        digest = hashlib.sha256(json.dumps([self.route, self.body.values], sort_keys=True).encode())
        for name, file in sorted(self.body.files.items()):
            digest.update(name.encode() + _digest(file))
        return digest.hexdigest()


def once(asked: Asked, backend: Backend, response: Response, create: Callable[[Hold | None], Job]) -> Job:
    """The job of this request: made now, or found by its key, which `response` then says.

    Raises KeyReused if the key was given to another request; whatever `create` raises leaves the key free.
    """
    if asked.key is None:
        return create(None)
    hold = backend.keys.hold(backend.owner, asked.key, asked.fingerprint())
    if hold.job:
        response.headers[REPLAYED] = "true"
        return hold.job
    with ExitStack() as failed:
        failed.callback(_release, hold, backend)
        job = create(hold)
        failed.pop_all()
    return job


def _digest(file: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    file.seek(0)
    return digest.digest()


def _release(hold: Hold, backend: Backend) -> None:
    with suppress(Unavailable):  # then the key lapses by itself
        backend.keys.release(hold)
