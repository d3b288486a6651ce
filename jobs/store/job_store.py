"""Open the job store: the records of all jobs, and the three roles in which processes use them.

The service is a `client`: it submits, shows, cancels and deletes jobs. The worker that runs a job is its
`holder`. Every process does `maintenance`. Each change is one atomic script in Redis (`jobs.store.scripts`).
The rules that all of them keep:

- A final state never changes.
- Each claim gets a fencing token, one more than the claim before. The store refuses a holder with an older
  one.
- Every script may run twice, because a command whose reply was lost is sent again.
- Time is the Redis server's, so the clocks of machines do not matter.
"""

from __future__ import annotations

from collections.abc import Callable

from redis import Redis

from jobs.store.client import JobClient
from jobs.store.holder import JobHolder
from jobs.store.maintenance import JobMaintenance
from jobs.store.quotas import Quotas
from jobs.store.scripts import Replication, Scripts


class JobStore:
    """The records of all jobs. Safe to share between threads.

    All methods of all roles raise Unavailable while Redis cannot be reached.

    Args:
        redis: a client made by `jobs.connect`.
        retention_s: how long finished jobs are kept.
        max_attempts: how often a job may crash its worker before it fails.
        late_upload_s: how long after its client gave up an upload may still arrive in the storage.
        quotas: limits for each owner and in all.
        replication: the replicas that must have a change before a client or a holder may rely on it.
        clock: replaces the server's clock in tests; milliseconds.
    """

    def __init__(  # noqa: PLR0913 - options, all by name
        self,
        redis: Redis,
        *,
        retention_s: float = 7 * 86400.0,
        max_attempts: int = 3,
        late_upload_s: float = 300.0,
        quotas: Quotas = Quotas(),  # noqa: B008 - frozen
        replication: Replication = Replication(),  # noqa: B008 - frozen
        clock: Callable[[], int] | None = None,
    ) -> None:
        scripts = Scripts(redis, clock, replication)
        self.client = JobClient(
            redis,
            scripts,
            retention_s=retention_s,
            max_attempts=max_attempts,
            late_upload_s=late_upload_s,
            quotas=quotas,
        )
        self.holder = JobHolder(redis, scripts)
        self.maintenance = JobMaintenance(redis, scripts, late_upload_s)
