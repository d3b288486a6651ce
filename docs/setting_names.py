"""Print the names of settings: `python -m docs.setting_names chart` or `python -m docs.setting_names all`.

The Helm chart refuses settings that neither the API nor the worker reads. The API and the worker warn of
variables that nothing reads. A test checks that both committed lists are current.
"""

from __future__ import annotations

import sys

from service.cli.settings import CliSettings
from service.settings import Settings
from stack.settings import StackSettings
from worker.settings import WorkerSettings

SCRIPTS = frozenset({"bind_address", "python"})
"""What docker-compose.yml and the Slurm script read from the environment."""


def of_chart() -> str:
    """Return the names that the API or the worker reads, without the prefix."""
    return _lines(Settings.model_fields.keys() | WorkerSettings.model_fields.keys())


def of_all() -> str:
    """Return the names that any program reads, without the prefix."""
    classes = (Settings, WorkerSettings, StackSettings, CliSettings)
    return _lines(SCRIPTS.union(*(each.model_fields for each in classes)))


def _lines(names: set[str] | frozenset[str]) -> str:
    return "".join(f"{name.upper()}\n" for name in sorted(names))


if __name__ == "__main__":
    sys.stdout.write({"chart": of_chart, "all": of_all}[sys.argv[1]]())
