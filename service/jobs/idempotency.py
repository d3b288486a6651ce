"""Make requests safe to repeat: the `Idempotency-Key` header of every POST that creates a job.

The same key with the same request returns the same job, however often and concurrently it is sent, for as
long as the job is kept. For a batch, it returns the first of the jobs that are left. Keys belong to their
owner. `jobs.store.idempotency` is the atomic part.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

from fastapi import Depends, Header, Request, Response
from pydantic import AfterValidator

from jobs.errors import InvalidRequest, Unavailable
from jobs.record import Job
from jobs.store.idempotency import KeyReservation
from jobs.store.submission import Submitted
from service.backend import RequestBackend
from service.inputs.body import Body

_CHUNK_BYTES = 1 << 20
REPLAYED = "Idempotent-Replayed"
REPLAYED_HEADER: dict[str, dict[str, Any]] = {
    REPLAYED: {
        "description": "`true` if an earlier request with this key created the job",
        "schema": {"type": "string", "enum": ["true"]},
    }
}

_HEADER = "Idempotency-Key"
_PATTERN = "^[!-~]+$"


def _check_characters(key: str) -> str:
    if not re.fullmatch(_PATTERN, key):
        raise ValueError("must consist of printable ASCII characters without spaces")
    return key


async def _only_key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        AfterValidator(_check_characters),
        Header(
            alias=_HEADER,
            min_length=1,
            max_length=255,
            json_schema_extra={"pattern": _PATTERN},
            description="ASCII characters without spaces, new for each video. A request repeated with its "
            "key creates no second job.",
        ),
    ] = None,
) -> str | None:
    """Return the key of a request. Raise InvalidRequest if it has several, of which any could be meant."""
    if len(request.headers.getlist(_HEADER)) > 1:
        raise InvalidRequest(f"{_HEADER}: is given twice", _HEADER)
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(_only_key)]
"""Dependency of a route. Declared before the body, it is checked before that is read."""


@dataclass(frozen=True)
class IdempotentRequest:
    """The parts of a request that distinguish it from others."""

    route: str
    body: Body
    key: str | None

    def fingerprint(self) -> str:
        """Return a digest of the route, the fields and the files. The form's encoding does not count."""
        digest = hashlib.sha256(json.dumps([self.route, self.body.values], sort_keys=True).encode())
        for name, file in sorted(self.body.files.items()):
            digest.update(name.encode() + _digest(file))
        return digest.hexdigest()


def idempotent(
    request: IdempotentRequest,
    backend: RequestBackend,
    response: Response,
    create: Callable[[KeyReservation | None], Submitted],
) -> Job:
    """Return the job of this request: an existing one if the key is known, else the one that `create` makes.

    Sets the header `Idempotent-Replayed` on `response` if the job existed. If `create` fails, the key is free
    again. Raises KeyReused if the key was used for another request, and whatever `create` raises.
    """
    if request.key is None:
        return create(None).job
    reservation = backend.idempotency_keys.reserve(backend.caller.owner, request.key, request.fingerprint())
    if reservation.job:
        response.headers[REPLAYED] = "true"
        return reservation.job
    try:
        submitted = create(reservation)
    except BaseException:
        with suppress(Unavailable):  # the key expires by itself
            backend.idempotency_keys.release(reservation)
        raise
    if not submitted.is_new:  # a concurrent request was faster
        response.headers[REPLAYED] = "true"
    return submitted.job


def _digest(file: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    file.seek(0)
    return digest.digest()
