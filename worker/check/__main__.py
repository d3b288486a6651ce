"""Check whether this machine can run a worker with its settings: `python -m worker.check`.

It reads the settings, and of the checkpoint all but the weights. It asks the driver for the GPUs, and on
node 0 Redis and the storage for an answer, and predicts which videos fit into the memory of the GPUs. The
exit status is 1 if something was found that keeps a worker from running, and 2 for settings that cannot work.
"""

from __future__ import annotations

import argparse
import sys

from jobs.settings import SETTINGS_HELP, InvalidSettings, warn_of_unknown_settings
from worker.check.gpus import find_gpus
from worker.check.machine import check_machine
from worker.settings import WorkerSettings, visible_devices


def main() -> int:
    """Print the report. Return the exit status."""
    argparse.ArgumentParser(
        prog="python -m worker.check",
        description="Check whether this machine can run a worker with its settings, and which videos fit.",
        epilog=SETTINGS_HELP,
    ).parse_args()
    try:
        settings = WorkerSettings.read()
    except InvalidSettings as error:
        sys.stderr.write(f"{error}\n")
        return 2
    warn_of_unknown_settings()
    has_problem = False
    for finding in check_machine(settings, find_gpus(visible_devices())):
        sys.stdout.write(f"{finding.kind:8} {finding.text}\n")
        sys.stdout.flush()
        has_problem |= finding.kind == "problem"
    return 1 if has_problem else 0


if __name__ == "__main__":
    sys.exit(main())
