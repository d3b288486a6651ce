"""Generate the page of all settings: `python -m docs.settings_page > docs/settings.md`.

The page is made from the settings classes. A test checks that the committed page is current.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.settings import PREFIX, SharedSettings
from service.settings import Settings
from stack.settings import StackSettings
from worker.settings import WorkerSettings

_ROOT = Path(__file__).parents[1]
_INTRODUCTION = f"""\
# Settings

Every setting is an environment variable with the prefix `{PREFIX}`: `PORT` below is `{PREFIX}PORT`. An empty
variable counts as absent. A secret can be kept in a file: `{PREFIX}API_KEY_FILE` names the file that contains
the value of `{PREFIX}API_KEY`, and so on for every setting.

Names end with the unit: `_S` is seconds, `_BYTES` is bytes. A process that finds an invalid setting names it
and exits with status 2. The API and the worker log a warning that names variables with the prefix that are no
settings, such as misspelt ones.
"""
_SHARED = """
## Shared settings

Read by the API and by the workers. Give them the same values in all processes of an installation.
"""
_API = """
## API

Read by `python -m service` and by the commands of the service (`service.keys`, `service.webhooks` and so on).
The value `none` removes a limit on requests, jobs, event streams or stored input. It also turns ageing off.
"""
_WORKER = """
## Worker

Read by `python -m worker`. On a CPU, the ranks share the cores evenly, and each leaves one core of its share
to the video encoder. Set `OMP_NUM_THREADS` to choose the number of threads of a rank yourself. On GPUs, ranks
and `python -m model` run with `PYTORCH_ALLOC_CONF=expandable_segments:True`, so that memory of small videos
serves large ones, too; your own `PYTORCH_ALLOC_CONF` or `PYTORCH_CUDA_ALLOC_CONF` replaces that. They also
run with `TORCH_NCCL_HIGH_PRIORITY=1`, so that exchanges begin while attention computes.
"""
_STACK = """
## `make serve` and `make demo`

Both start Redis, the API and a worker on one machine, and pass all settings on to them. These are their own:
"""
_HEADER = "\n| name | default | meaning |\n|---|---|---|\n"
_COMPUTED = {
    "max_decodes": "number of CPU cores, at most 4",
    "worker_name": "host name",
}
"""Defaults that depend on the machine."""


def document() -> str:
    """Return the page as Markdown. Raise ValueError for a setting without a description."""
    shared = SharedSettings.model_fields
    api = _without(Settings, shared)
    worker = _without(WorkerSettings, shared)
    stack = _without(StackSettings, {**shared, **api, **worker})
    sections = [(_SHARED, shared), (_API, api), (_WORKER, worker), (_STACK, stack)]
    tables = "".join(text + _HEADER + _rows(fields) for text, fields in sections)
    return _INTRODUCTION + tables


def _without(settings: type[BaseModel], known: dict[str, FieldInfo]) -> dict[str, FieldInfo]:
    """Return the fields that are new in these settings, or have another default than the known ones."""
    return {
        name: field
        for name, field in settings.model_fields.items()
        if name not in known or known[name].default != field.default
    }


def _rows(fields: dict[str, FieldInfo]) -> str:
    rows = []
    for name, field in fields.items():
        if not field.description:
            raise ValueError(f"{name} has no description")
        default = _COMPUTED.get(name) or _shown(name, field.default)
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |\n")
    return "".join(rows)


def _shown(name: str, value: Any) -> str:  # noqa: ANN401 - the default of any field
    if value in (None, ""):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Path):
        return f"`{value.relative_to(_ROOT) if value.is_absolute() else value}`"
    if isinstance(value, float):
        return f"`{value:.15g}`"
    if name.endswith(("_bytes", "_bytes_per_day")) and value % 1024 == 0:
        return f"`{value}` ({_binary(value)})"
    return f"`{value}`"


def _binary(size_bytes: int) -> str:
    """Return a multiple of 1024 in the largest binary unit that gives a whole number."""
    for exponent, unit in ((3, "GiB"), (2, "MiB")):
        if size_bytes % 1024**exponent == 0:
            return f"{size_bytes // 1024**exponent} {unit}"
    return f"{size_bytes // 1024} KiB"


if __name__ == "__main__":
    sys.stdout.write(document())
