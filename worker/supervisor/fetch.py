"""From a claim to what rank 0 is told: the order's files and the saved state are fetched.

The supervisor's intake does this in its thread, after the claim and before the group has the job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import PurePath

from jobs.errors import InvalidInput, KeyMissing, LongCatError
from jobs.logs import about, names_of
from jobs.order import Order
from jobs.storage.base import Storage
from worker.messages import Checkpoint, RunJob
from worker.supervisor.checkpoints import fetch_save, stored_save
from worker.supervisor.job import (
    Abandoned,
    ClaimedJob,
    Completed,
    Ending,
    Errored,
    Interrupted,
    Requeued,
    as_job_error,
)
from worker.supervisor.retry import retry_while_unavailable
from worker.supervisor.spool import Spool

logger = logging.getLogger(__name__)


class InputFetcher:
    """Fetches what a job needs, as long as that takes, unless it is stopped."""

    def __init__(self, storage: Storage, spool: Spool) -> None:
        self._storage = storage
        self._spool = spool
        self._stopped = threading.Event()

    def stop(self) -> None:
        """What cannot be fetched at once goes back to the queue."""
        self._stopped.set()

    def prepare(self, held: ClaimedJob) -> RunJob | Ending:
        """The order for rank 0; or how the job ends without it."""
        with about(names_of(held.claim.job)):
            return self._prepared(held)

    def _prepared(self, held: ClaimedJob) -> RunJob | Ending:
        try:
            self._spool.folder(held.job_id)
            return self._prepare(held, lambda: self._may_go_on(held))
        except Interrupted:
            return Abandoned(held.wish) if held.wish else Requeued(crashed=False)
        except (LongCatError, OSError) as error:
            logger.exception("job %s cannot be prepared", held.job_id)
            return Errored(as_job_error(error))

    def _prepare(self, held: ClaimedJob, may_go_on: Callable[[], None]) -> RunJob | Completed:
        if waiting := self._spool.waiting(held.job_id):
            held.timings_s = waiting.timings_s
            return Completed(waiting.film)
        began = time.monotonic()
        with held.stages.doing("fetch", "job"):
            inputs, resume = self._fetch_inputs(held, may_go_on), self._fetch_save(held, may_go_on)
        timings_s = dict(resume.timings_s) if resume else {}
        timings_s["load"] = timings_s.get("load", 0.0) + time.monotonic() - began
        return RunJob(
            job_id=held.job_id,
            order=held.claim.job.order,
            folder=held.folder,
            inputs=inputs,
            resume=resume,
            timings_s=timings_s,
            names=names_of(held.claim.job),
        )

    def _may_go_on(self, held: ClaimedJob) -> None:
        if held.wish or self._stopped.is_set():
            raise Interrupted

    def _fetch_inputs(self, held: ClaimedJob, may_go_on: Callable[[], None]) -> dict[str, str]:
        names = {}
        for field, key in input_keys(held.claim.job.order).items():
            names[field] = name = f"{field}{PurePath(key).suffix}"
            if not (held.folder / name).exists():
                try:
                    retry_while_unavailable(partial(self._storage.fetch, key, held.folder / name), may_go_on)
                except KeyMissing as error:
                    raise InvalidInput("the file is no longer in storage", field) from error
        return names

    def _fetch_save(self, held: ClaimedJob, may_go_on: Callable[[], None]) -> Checkpoint | None:
        """The latest save that can be had: this machine's own, or the storage's."""
        local, stored = self._spool.saved(held.job_id), stored_save(held.claim.checkpoint)
        held.save = stored
        if local and (stored is None or local.position >= stored.position):
            return local
        if stored is None:
            return None
        try:
            retry_while_unavailable(lambda: fetch_save(stored, held, self._storage), may_go_on)
        except KeyMissing as error:
            logger.warning("job %s begins anew: %s", held.job_id, error)
            held.save = None
            return local
        return stored


def input_keys(order: Order) -> dict[str, str]:
    """Where the order's files lie, by field."""
    files = {"image": order.image, "video": order.video, "condition_video": order.condition_video}
    return {field: file.key for field, file in files.items() if file}
