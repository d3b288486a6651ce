"""Limit how much of the service an owner, and all owners together, may use at a time.

The service passes the limits with every request and submission. The scripts check and count in the same step,
so a limit is exact however many processes serve.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from jobs.store.scripts import present


@dataclass(frozen=True)
class Quotas:
    """Limits by the names that clients see when one is reached; None is no limit.

    A burst may have as many requests as a second allows. Inputs count with the size at which they are stored,
    by the day in UTC. Jobs above the limit on running jobs wait, while those of other owners pass them.
    Stored jobs are those in any state, also ended ones until they expire or are deleted.

    GPU time, in seconds, counts on the day of submission: first what a job is expected to take, and when it
    has ended what it took. Until a job has succeeded, nothing is expected.
    """

    owner_requests_per_s: float | None = None
    total_requests_per_s: float | None = None
    owner_queued_jobs: int | None = None
    total_queued_jobs: int | None = None
    owner_stored_jobs: int | None = None
    total_stored_jobs: int | None = None
    owner_running_jobs: int | None = None
    total_running_jobs: int | None = None
    owner_input_bytes_per_day: int | None = None
    total_input_bytes_per_day: int | None = None
    owner_gpu_s_per_day: int | None = None

    @property
    def of_requests(self) -> dict[str, object]:
        """Return the limits that apply to every request."""
        return self._ending_with("_requests_per_s")

    @property
    def of_submission(self) -> dict[str, object]:
        """Return the limits that apply to a new job."""
        return self._ending_with("_queued_jobs", "_stored_jobs", "_input_bytes_per_day", "_gpu_s_per_day")

    @property
    def of_running(self) -> dict[str, object]:
        """Return the limits that a queued job carries until it may start."""
        return self._ending_with("_running_jobs")

    def _ending_with(self, *endings: str) -> dict[str, object]:
        return present({name: bound for name, bound in asdict(self).items() if name.endswith(endings)})
