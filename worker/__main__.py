"""`python -m worker`: takes jobs and runs them on this machine's GPUs until it is asked to end (SIGTERM).

Settings are `LONGCAT_*` (`worker.settings`). It starts itself again for each group, with `--group`. It exits
with 2 for settings that cannot work, with 0 after a drain.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading

from pydantic import ValidationError

from jobs.errors import LongCatError
from jobs.logs import set_up_log
from jobs.private_files import PRIVATE_UMASK
from worker.launcher import USELESS, watch
from worker.process import die_with_parent
from worker.settings import WorkerSettings
from worker.supervisor.app import build_supervisor


def main() -> int:
    """Run the parent, or with `--group` the supervisor of one group; returns the exit status."""
    options = _options()
    os.umask(PRIVATE_UMASK)
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
    try:
        settings = WorkerSettings()
        set_up_log(settings.log_format)
        if options.group is None:
            return watch(settings.num_groups)
        return _supervise(settings, options.group, options.parent)
    except (ValidationError, LongCatError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USELESS


def _supervise(settings: WorkerSettings, group: int, parent_pid: int) -> int:
    die_with_parent(parent_pid, signal.SIGTERM)
    supervisor = build_supervisor(settings, group)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.end())
    failures: list[threading.ExceptHookArgs] = []

    def end_with_thread(failed: threading.ExceptHookArgs) -> None:
        logging.critical("a thread failed, so this supervisor ends", exc_info=failed.exc_value)
        failures.append(failed)
        supervisor.end()

    threading.excepthook = end_with_thread
    supervisor.serve()
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker", description="Take jobs and generate videos.")
    parser.add_argument("--group", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
