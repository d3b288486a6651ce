"""Run the Lua scripts of this folder. Each makes one atomic change, or reads what must be consistent.

A script receives one JSON object and replies in Redis's types, or refuses with a code that becomes an error
of `jobs.errors`. Its first line names the files in `parts/` that it uses (`-- include: record, queue`), and
only these are sent to Redis with it. `README.md` lists all keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from redis import Redis
from redis.commands.core import Script
from redis.exceptions import ResponseError

from jobs.connect import redis_reached
from jobs.errors import JobEnded, JobNotFound, KeyReused, LeaseLost, LimitReached

FOLDER = Path(__file__).parent
_INCLUDES = re.compile(r"-- include: (.+)")
_KEY_FIELD = "Idempotency-Key"


class Scripts:
    """The scripts on one Redis. Each is loaded when it is first used, and again if Redis lost it."""

    def __init__(self, redis: Redis, clock: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._clock = clock
        self._scripts: dict[str, Script] = {}

    def run(self, name: str, **given: object) -> Any:  # noqa: ANN401 - each script has its own reply
        """Run a script with the arguments `given` that are not None.

        Raises JobNotFound, JobEnded, LeaseLost, KeyReused or LimitReached if the script refuses, Unavailable
        while Redis cannot be reached.
        """
        if self._clock is not None:
            given["now_ms"] = self._clock()
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self._redis.register_script(source(name))
        with redis_reached(), _refusals():
            return script(args=[json.dumps(present(given))])


@cache
def source(name: str) -> str:
    """Return the full text of a script: the parts that it includes, each once, then the script itself."""
    path = FOLDER / f"{name}.lua"
    return "\n".join(file.read_text() for file in [*_parts(path, []), path])


def to_ms(seconds: float | None) -> int | None:
    """Return whole milliseconds, None for None."""
    return None if seconds is None else round(seconds * 1000)


def to_json(model: BaseModel | None) -> str | None:
    """Return a model as JSON, None for None."""
    return None if model is None else model.model_dump_json()


def present(given: Mapping[str, object]) -> dict[str, object]:
    """Return the items whose value is not None."""
    return {name: value for name, value in given.items() if value is not None}


def fields_of(flat: list[Any]) -> dict[str, str]:
    """Return the fields of a hash that a script replied as alternating names and values."""
    return decoded(zip(flat[::2], flat[1::2], strict=True))


def decoded(items: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """Return a hash with names and values as text."""
    return {text(name): text(value) for name, value in items}


def text(item: object) -> str:
    """Return a reply of Redis as text, whether or not its client decodes replies."""
    return item.decode() if isinstance(item, bytes) else str(item)


def _parts(path: Path, found: list[Path]) -> list[Path]:
    """Add the files that one includes to `found`, each after those that it includes itself."""
    first_line = path.read_text().partition("\n")[0]
    if match := _INCLUDES.fullmatch(first_line):
        for name in match[1].split(", "):
            part = FOLDER / "parts" / f"{name}.lua"
            if part not in found:
                _parts(part, found)
                found.append(part)
    return found


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
                raise LeaseLost("another worker holds this job by now") from None
            case ["LIMIT_REACHED", limit, bound, retry_after_s]:
                raise LimitReached(limit, bound, int(retry_after_s)) from None
            case ["KEY_REUSED"]:
                raise KeyReused("this idempotency key was given to another request", _KEY_FIELD) from None
        raise
