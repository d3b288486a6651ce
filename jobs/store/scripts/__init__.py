"""Run the Lua scripts of this folder. Each makes one atomic change, or reads what must be consistent.

A script receives one JSON object and replies in Redis's types, or refuses with a code that becomes an error
of `jobs.errors`. Its first line names the files in `parts/` that it uses (`-- include: record, queue`), and
only these are sent to Redis with it. `README.md` lists all keys.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from redis import Redis
from redis.commands.core import Script
from redis.exceptions import ResponseError

from jobs.connect import redis_reached
from jobs.errors import JobEnded, JobNotFound, KeyReused, LeaseLost, LimitReached, Unavailable

_CLOCK_TOLERANCE_S = 5.0  # a command may be on its way for some time
_SLOWEST = 0.89  # speed of the scripts' time, at least: clock.lua slows it down to 0.9 of the server's clock
_ANY_MS = 10**14
_ACKNOWLEDGED = {"submit", "cancel", "delete", "finish"}
"""The scripts whose results must survive a failover: clients rely on them, or workers remove files then."""

FOLDER = Path(__file__).parent
_INCLUDES = re.compile(r"-- include: (.+)")
_LOCATION = re.compile(r"user_script:(\d+)")
_KEY_FIELD = "Idempotency-Key"


@dataclass(frozen=True)
class Replication:
    """Require replicas to have a change before it is acknowledged, and limit the wait for them."""

    num_replicas: int = 0
    wait_s: float = 1.0


class Scripts:
    """The scripts on one Redis. Each is loaded when it is first used, and again if Redis lost it."""

    def __init__(
        self,
        redis: Redis,
        clock: Callable[[], int] | None = None,
        replication: Replication = Replication(),
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._replication = replication
        self._swept_at: float | None = None
        self._known_time: tuple[float, int] | None = None
        self._scripts: dict[str, Script] = {}

    def run(self, name: str, **given: object) -> Any:  # noqa: ANN401 - each script has its own reply
        """Run a script with the arguments `given` that are not None.

        Raises JobNotFound, JobEnded, LeaseLost, KeyReused or LimitReached if the script refuses, Unavailable
        while Redis cannot be reached, or if too few replicas confirm a change in time. The change is made
        then, and may be repeated.
        """
        began_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._clock is not None:
            given["now_ms"] = self._clock()
        else:
            given["longest_ms"] = self._longest_ms(name, began_at)
            given["least_ms"] = self._least_ms(began_at) if name == "sweep" else None
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self._redis.register_script(source(name))
        arguments = [json.dumps(present(given))]
        with redis_reached(), _refusals(name):
            if self._replication.num_replicas and name in _ACKNOWLEDGED:
                reply = self._run_replicated(script, arguments)
            else:
                reply = script(args=arguments)
        if name == "sweep":
            self._swept_at = began_at
            now_ms, reply = reply
            self._note_time(now_ms)
        return reply

    def _run_replicated(self, script: Script, arguments: list[str]) -> Any:  # noqa: ANN401
        """Run a script and wait for replicas. Raises Unavailable if too few confirm it.

        Both commands use one connection, because WAIT waits for what its own connection wrote. If it breaks,
        both are repeated: a new primary may not have the change.
        """
        with self._redis.pipeline(transaction=False) as pipeline:
            script(args=arguments, client=pipeline)
            pipeline.wait(self._replication.num_replicas, round(self._replication.wait_s * 1000))
            reply, num_replicas = pipeline.execute(raise_on_error=False)
        for answer in (reply, num_replicas):
            if isinstance(answer, ResponseError):
                raise answer
        if num_replicas < self._replication.num_replicas:
            raise Unavailable(f"only {num_replicas} replicas of Redis have confirmed the change; try again")
        return reply

    def _longest_ms(self, name: str, now_s: float) -> int | None:
        """Return the longest time that can have passed since any process swept; `parts/clock.lua` uses it.

        That was not before the last sweep of this process. Its first sweep knows nothing: all processes may
        have been down for long.
        """
        if self._swept_at is not None:
            return to_ms(now_s - self._swept_at + _CLOCK_TOLERANCE_S)
        return _ANY_MS if name == "sweep" else None

    def _least_ms(self, now_s: float) -> int | None:
        """Return what the scripts' time must be at least, by the clock of this process."""
        if self._known_time is None:
            return None
        known_at, known_ms = self._known_time
        return known_ms + round(_SLOWEST * 1000 * (now_s - known_at))

    def _note_time(self, now_ms: int) -> None:
        """Remember what the time was, unless the reply is that of a sweep which Redis executed late."""
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        if now_ms >= (self._least_ms(now_s) or 0):
            self._known_time = now_s, now_ms


def source(name: str) -> str:
    """Return the full text of a script: the parts that it includes, each once, then the script itself."""
    return "".join(line for _, line in lines(name))


def location(name: str, number: int) -> str:
    """Return the file, and the line in it, of a line in the full text of a script."""
    return lines(name)[number - 1][0]


@cache
def lines(name: str) -> list[tuple[str, str]]:
    """Return the lines of the full text of a script, each with its location."""
    path = FOLDER / f"{name}.lua"
    return [
        (f"{file.relative_to(FOLDER.parents[2])}:{number}", line)
        for file in [*_parts(path, []), path]
        for number, line in enumerate(file.read_text().splitlines(keepends=True), 1)
    ]


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
def _refusals(name: str) -> Iterator[None]:
    """Raise the error that a script's refusal means. Any other error gets a note that says where it is."""
    try:
        yield
    except ResponseError as error:
        match str(error).split():
            case ["JOB_NOT_FOUND"]:
                raise JobNotFound("no such job") from None
            case ["JOB_ENDED"]:
                raise JobEnded("the job has ended already") from None
            case ["LEASE_LOST"]:
                raise LeaseLost("another worker holds this job now") from None
            case ["LIMIT_REACHED", limit, bound, retry_after_s]:
                raise LimitReached(limit, bound, int(retry_after_s)) from None
            case ["KEY_REUSED"]:
                raise KeyReused("this idempotency key was given to another request", _KEY_FIELD) from None
        if found := _LOCATION.search(str(error)):
            error.add_note(location(name, int(found[1])))
        raise
