"""Print the names of all settings, for the Helm chart: it refuses settings with other names.

A test checks that the committed list is current.
"""

from __future__ import annotations

import sys

from service.settings import Settings
from worker.settings import WorkerSettings


def document() -> str:
    """Return the names that the API or the worker reads, without the prefix."""
    names = Settings.model_fields.keys() | WorkerSettings.model_fields.keys()
    return "".join(f"{name.upper()}\n" for name in sorted(names))


if __name__ == "__main__":
    sys.stdout.write(document())
