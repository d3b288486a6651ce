"""Generate the table of all error codes: `python -m service.openapi.error_table > docs/errors.md`.

The table is made from the error classes. A test checks that the committed file is current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import walk_packages

import service
from jobs.errors import JOB_ERRORS, LongCatError
from service.errors import STATUS, status_of

_INTRODUCTION = """\
# Errors

Every error response has a JSON body of the same shape, and, if the request was valid HTTP, a header
`X-Request-Id` by which you find the request in the logs:

```json
{
  "error": {
    "code": "invalid_request",
    "message": "num_frames: must be one more than a multiple of 4",
    "field": "num_frames"
  }
}
```

Codes never change; messages may. `field` names the part of the request at fault, if there is one. If a
retry can help, `Retry-After` gives the number of seconds to wait. Reading a failed job is not an error: the
response is 200, and the job has its own `error` with `code`, `message` and `retryable`.

Under `/v1/` errors have OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`, with the same
codes. A request that breaks a rule (`invalid_request`, `invalid_input`, `quality_not_allowed`) is answered
with 400 there, a cancelled job appears as failed with the code `cancelled`, and the header `x-should-retry`
tells OpenAI's clients whether to retry.

"""
_HEADER = "| code | status | fails a job | retryable | meaning |\n|---|---|---|---|---|\n"
_LEGEND = """
Codes without a status that fail no job concern the operator: a process logs them and exits, or continues
without what is missing. The [runbook](operations.md#runbook) says what to do about each code.
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


_WITHOUT_A_CLASS = [
    _Row("not_found", 404, False, False, "There is no such path."),
    _Row(
        "method_not_allowed",
        405,
        False,
        False,
        "The path does not support this method; `Allow` lists those it supports.",
    ),
    _Row("internal", 500, True, False, "A bug in the service; the message contains the request id."),
]


def document() -> str:
    """Return the page as Markdown."""
    rows = [*map(_row, classes()), *_WITHOUT_A_CLASS]
    rows.sort(key=lambda row: (row.status or 600, not row.fails_a_job, row.code))
    return _INTRODUCTION + _HEADER + "".join(f"{row}\n" for row in rows) + _LEGEND


def classes() -> Iterator[type[LongCatError]]:
    """Yield all error classes of `jobs` and `service`."""
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
    return _Row(kind.code, status, kind in JOB_ERRORS, kind.retryable, meaning)


if __name__ == "__main__":
    sys.stdout.write(document())
