"""Run the Lua scripts of this folder, each one atomic change of the job store.

A script gets one JSON object and answers in Redis's types, or refuses with a code that becomes one of
`jobs.errors`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from redis import Redis
from redis.exceptions import ResponseError

from jobs.connect import redis_reached
from jobs.errors import JobEnded, JobNotFound, KeyReused, LeaseLost, LimitReached

_FOLDER = Path(__file__).parent
_PARTS = (  # each may use those before it
    "shared",
    "limits",
    "line",
    "preemption",
    "forecast",
    "measures",
    "outbox",
    "states",
)
_KEY_FIELD = "Idempotency-Key"


class Scripts:
    """The scripts on one Redis, loaded when they are first used (and again if it lost them)."""

    def __init__(self, redis: Redis, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock
        shared = "".join((_FOLDER / f"{part}.lua").read_text() for part in _PARTS)
        self._scripts = {
            path.stem: redis.register_script(shared + path.read_text())
            for path in _FOLDER.glob("*.lua")
            if path.stem not in _PARTS
        }

    def run(self, name: str, **given: object) -> Any:  # noqa: ANN401 - what it answers is each script's own
        """Run a script with what is `given`, leaving out None.

        Raises JobNotFound, JobEnded, LeaseLost, KeyReused or LimitReached where the script refuses,
        Unavailable where Redis is away.
        """
        if self._clock is not None:
            given["now_ms"] = self._clock()
        with redis_reached(), _refusals():
            return self._scripts[name](args=[json.dumps(present(given))])


def to_ms(seconds: float | None) -> int | None:
    """Return whole milliseconds, None for None."""
    return None if seconds is None else round(seconds * 1000)


def to_json(model: BaseModel | None) -> str | None:
    """Return a model as JSON, None for None."""
    return None if model is None else model.model_dump_json()


def present(given: Mapping[str, object]) -> dict[str, object]:
    """What is not None."""
    return {name: value for name, value in given.items() if value is not None}


def fields_of(flat: list[Any]) -> dict[str, str]:
    """The fields of a hash, which a script answers as names and values in turn."""
    texts = [item.decode() if isinstance(item, bytes) else str(item) for item in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ResponseError as error:
        match str(error).split():
            case ["JOB_NOT_FOUND"]:
                raise JobNotFound("no such job") from None
            case ["JOB_ENDED"]:
                raise JobEnded("the job has ended already") from None
            case ["LEASE_LOST"]:
                raise LeaseLost("this job is somebody else's by now") from None
            case ["LIMIT_REACHED", limit, bound, retry_after_s]:
                raise LimitReached(limit, bound, int(retry_after_s)) from None
            case ["KEY_REUSED"]:
                raise KeyReused("this idempotency key was given to another request", _KEY_FIELD) from None
        raise
