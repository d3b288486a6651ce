"""The worker's health check: 0 while every one of its groups is alive and not broken.

Docker runs it inside the worker's container. When Redis is away nothing can be said of the worker, which
goes on working meanwhile: that counts as healthy.
"""

from __future__ import annotations

import sys

from jobs.connect import connect
from jobs.errors import Unavailable
from jobs.registration import live_groups
from worker.settings import WorkerSettings


def unhealthy(settings: WorkerSettings) -> list[str]:
    """Return the names of this worker's groups that are broken or send no heartbeat."""
    with connect(settings.redis_address, deadline_s=2.0) as redis:
        alive = {status.group for status in live_groups(redis) if status.state != "broken"}
    return [name for name in map(settings.group_name, range(settings.num_groups)) if name not in alive]


def main() -> int:
    """1, with the names, if a group is not well."""
    try:
        names = unhealthy(WorkerSettings())
    except Unavailable:
        return 0
    if names:
        sys.stderr.write(f"not well: {', '.join(names)}\n")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
