"""How much of the service an owner, and all owners together, may have at a time.

The service says it with every request and submission, and the scripts hold to it in the same step that
counts, so a limit is exact however many processes serve.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from jobs.store.scripts import present


@dataclass(frozen=True)
class Quotas:
    """The limits by name, which is also how a refusal calls them; None is no limit.

    Requests may come at once as many as a second gives. Inputs count with the size at which they are stored,
    by the day in UTC. Jobs above the limit on running ones wait, while those of other owners pass them.
    """

    owner_requests_per_s: float | None = None
    total_requests_per_s: float | None = None
    owner_queued_jobs: int | None = None
    total_queued_jobs: int | None = None
    owner_running_jobs: int | None = None
    total_running_jobs: int | None = None
    owner_input_bytes_per_day: int | None = None
    total_input_bytes_per_day: int | None = None

    def named(self, *endings: str) -> dict[str, object]:
        """Those that are set and whose name ends so."""
        return present({name: bound for name, bound in asdict(self).items() if name.endswith(endings)})

    @property
    def of_requests(self) -> dict[str, object]:
        """What every request counts against."""
        return self.named("_requests_per_s")

    @property
    def of_submission(self) -> dict[str, object]:
        """What a new job counts against."""
        return self.named("_queued_jobs", "_input_bytes_per_day")

    @property
    def of_running(self) -> dict[str, object]:
        """What a job brings with it until it may begin."""
        return self.named("_running_jobs")
