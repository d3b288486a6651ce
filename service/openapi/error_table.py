"""Every error code in one table: `python -m service.openapi.error_table > docs/errors.md`.

The table is made from the error classes themselves; a test holds the file to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import walk_packages

import service
from jobs import errors
from jobs.errors import LongCatError
from service.errors import STATUS, status_of

_ENDS_A_JOB = (
    errors.InvalidInput,
    errors.OutOfMemory,
    errors.GenerationFailed,
    errors.WorkerCrashed,
    errors.UploadFailed,
    errors.DiskFull,
    errors.DeadlineExceeded,
)
_INTRODUCTION = """\
# Errors

An answer that is an error has a JSON body of one shape, and a header `X-Request-Id` by which it is found in
the logs:

```json
{"error": {"code": "invalid_request", "message": "num_frames: must be 4k + 1", "field": "num_frames"}}
```

Codes do not change; messages may. `field` is there where a part of the request is to blame. Where trying
again can help, `Retry-After` says in how many seconds. A job that failed is no error of the request that asks
for it: it is answered with 200, and carries its own `error` with `code`, `message` and `retryable`.

Under `/v1/` errors have OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`, with the same
codes. A request that breaks a rule (`invalid_request`, `invalid_input`, `quality_not_allowed`) is a 400
there, a cancelled job shows as failed with the code `cancelled`, and `x-should-retry` keeps OpenAI's clients
from trying again in vain.

"""
_HEADER = "| code | status | fails a job | try again | what it means |\n|---|---|---|---|---|\n"
_LEGEND = """
Codes with neither a status nor a job are for those who run the service: a process says so and ends, or goes
on without what is missing.
"""


@dataclass(frozen=True)
class _Row:
    code: str
    status: int | None
    fails_a_job: bool
    retryable: bool
    meaning: str

    def __str__(self) -> str:
        cells = (
            f"`{self.code}`",
            str(self.status or ""),
            "yes" if self.fails_a_job else "",
            "yes" if self.retryable else "",
            self.meaning,
        )
        return f"| {' | '.join(cells)} |"


_OF_THE_ROUTER = [
    _Row("not_found", 404, False, False, "There is nothing at this path."),
    _Row("method_not_allowed", 405, False, False, "The path does not take this method; `Allow` says which."),
    _Row("internal", 500, True, False, "An error of ours; the message has the request id."),
]


def document() -> str:
    """The table with what there is to know about it, as Markdown."""
    rows = [*map(_row, classes()), *_OF_THE_ROUTER]
    rows.sort(key=lambda row: (row.status or 600, not row.fails_a_job, row.code))
    return _INTRODUCTION + _HEADER + "".join(f"{row}\n" for row in rows) + _LEGEND


def classes() -> Iterator[type[LongCatError]]:
    """All kinds of errors that the service can meet, in whichever of its modules."""
    for module in walk_packages(service.__path__, "service."):
        if not module.name.endswith(("__main__", "error_table")):
            import_module(module.name)
    return (kind for kind in _below(LongCatError) if kind.__module__.startswith(("jobs.", "service.")))


def _below(root: type[LongCatError]) -> Iterator[type[LongCatError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from _below(kind)


def _row(kind: type[LongCatError]) -> _Row:
    meaning = " ".join((kind.__doc__ or "").split("\n\n", maxsplit=1)[0].split())
    answered = any(ancestor in STATUS for ancestor in kind.__mro__)
    status = status_of(kind) if answered else None
    return _Row(kind.code, status, kind in _ENDS_A_JOB, kind.retryable, meaning)


if __name__ == "__main__":
    sys.stdout.write(document())
