"""Print the names of all settings, for the Helm chart: it refuses settings with other names.

A test checks that the committed list is current.
"""

from __future__ import annotations

import sys

from service.settings import Settings
from worker.settings import WorkerSettings


def document() -> str:
    """Return the names that the API or the worker reads, also old ones, without the prefix."""
    classes = (Settings, WorkerSettings)
    names = {name for each in classes for name in {*each.model_fields, *each.old_names.values()}}
    return "".join(f"{name.upper()}\n" for name in sorted(names))


if __name__ == "__main__":
    sys.stdout.write(document())
