"""List the files in storage that belong to no job: `python -m service.ops.orphans [--remove]`.

There are none unless Redis lost its data. They are never removed automatically: a process that is configured
with the wrong Redis would see all files as orphans.
"""

from __future__ import annotations

import argparse
import sys

from jobs.errors import LongCatError
from jobs.maintenance import orphans, remove_files_of
from jobs.settings import InvalidSettings
from jobs.storage.keys import job_of
from service.backend import Backend
from service.settings import Settings


def main(arguments: list[str] | None = None) -> int:
    """Print the keys of orphaned files.

    Return the exit code: 1 if there are orphans that stay or the command failed, 2 for invalid settings.
    """
    parser = argparse.ArgumentParser(prog="python -m service.ops.orphans", description=__doc__)
    parser.add_argument("--remove", action="store_true", help="remove them")
    options = parser.parse_args(arguments)
    try:
        return _run(Backend.open(Settings.read()), remove=options.remove)
    except InvalidSettings as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except LongCatError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 1


def _run(backend: Backend, *, remove: bool) -> int:
    found = list(orphans(backend.job_store, backend.storage))
    sys.stdout.writelines(f"{key}\n" for key in found)
    for job_id in sorted({job_of(key) or "" for key in found}) if remove else ():
        remove_files_of(job_id, backend.job_store, backend.storage)
    return 0 if remove or not found else 1


if __name__ == "__main__":
    sys.exit(main())
