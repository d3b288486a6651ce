"""Run a worker: `python -m worker` claims jobs and runs them on this machine's GPUs until SIGTERM.

The settings are `LONGCAT_*` (`worker.settings`). The process is the launcher; it starts this module again
with `--group` as the supervisor of each GPU group. With NODE_RANK it runs ranks for the supervisor of another
machine (`worker.follower`). The exit status is 0 after a drain and 2 for settings
that cannot work.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading

from jobs.errors import LongCatError
from jobs.logs import set_up_log
from jobs.private_files import PRIVATE_UMASK
from jobs.settings import SETTINGS_HELP, InvalidSettings, warn_of_unknown_settings
from worker.follower import follow
from worker.health import HealthReporter
from worker.launcher import EXIT_UNUSABLE, launch
from worker.process import die_with_parent, hide_environment
from worker.settings import WorkerSettings
from worker.supervisor.app import build_supervisors, serve_together


def main() -> int:
    """Run the launcher, or with `--group` the supervisor of one group. Return the exit status."""
    hide_environment()
    options = _parse_options()
    os.umask(PRIVATE_UMASK)
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
    try:
        settings = WorkerSettings.read()
        set_up_log(settings.log_format)
        if options.group is None:
            warn_of_unknown_settings()
            return follow(settings) if settings.node_rank else launch(settings)
        return _supervise(settings, options)
    except InvalidSettings as error:
        print(error, file=sys.stderr)
    except LongCatError as error:
        print(f"error: {error}", file=sys.stderr)
    return EXIT_UNUSABLE


def _supervise(settings: WorkerSettings, options: argparse.Namespace) -> int:
    die_with_parent(options.parent, signal.SIGTERM)
    supervisors = build_supervisors(
        settings, options.group, HealthReporter(options.health_pipe).report, options.weight_memory
    )

    def drain() -> None:
        for supervisor in supervisors:
            supervisor.request_drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: drain())
    failures: list[threading.ExceptHookArgs] = []

    def drain_after_failure(failed: threading.ExceptHookArgs) -> None:
        logging.critical("a thread failed, so this supervisor drains", exc_info=failed.exc_value)
        failures.append(failed)
        drain()

    threading.excepthook = drain_after_failure
    serve_together(supervisors)
    return 1 if failures else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m worker", description="Claim jobs and generate videos.", epilog=SETTINGS_HELP
    )
    parser.add_argument("--group", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--health-pipe", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--weight-memory", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
