"""`python -m service.ops.orphans [--remove]`: the files in storage that no job accounts for.

There are none, unless Redis lost its data. No process removes them by itself: to one that was pointed to
another Redis all files look like that.
"""

from __future__ import annotations

import argparse
import sys

from pydantic import ValidationError

from jobs.errors import LongCatError
from jobs.maintenance import orphans, remove_files_of
from jobs.storage.keys import job_of
from service.backend import Backend
from service.settings import Settings, problems_of


def main(arguments: list[str] | None = None) -> int:
    """Print their keys; 1 if there are any and they stay, or it cannot be done; 2 for wrong settings."""
    parser = argparse.ArgumentParser(prog="python -m service.ops.orphans", description=__doc__)
    parser.add_argument("--remove", action="store_true", help="remove them")
    options = parser.parse_args(arguments)
    try:
        return _run(Backend.open(Settings()), remove=options.remove)
    except ValidationError as error:
        sys.stderr.write("\n".join([*problems_of(error), ""]))
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
