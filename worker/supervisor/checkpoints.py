"""Saved states on their way to the storage, so that any other group can go on from them.

One thread for a supervisor. Only the latest save of a job matters: one that is overtaken is left out. While
the storage is away the job goes on, and this machine still has its own copy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from jobs.errors import LeaseLost, LongCatError, Unavailable
from jobs.storage.base import Storage
from jobs.storage.keys import job_prefix, state_key
from jobs.store.job_store import JobStore
from worker.messages import Checkpoint
from worker.supervisor.job import ClaimedJob
from worker.supervisor.retry import retry_while_unavailable
from worker.supervisor.spool import Spool

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
STATE_TYPE, PIECE_TYPE = "application/octet-stream", "video/mp4"


def stored_save(saved: Mapping[str, Any] | None) -> Checkpoint | None:
    """What an earlier holder had the job_store remember; None if that was nothing, or by another version."""
    try:
        return Checkpoint.model_validate(saved) if saved else None
    except ValidationError:
        logger.warning("a saved state is in a form that is not known here")
        return None


def fetch_save(save: Checkpoint, held: ClaimedJob, storage: Storage) -> None:
    """Have all files of a save in the job's folder. Raises Unavailable, KeyMissing, DiskFull."""
    for name in save.files:
        if not (held.folder / name).exists():
            storage.fetch(_key(held.job_id, name), held.folder / name)


class CheckpointUploader:
    """Stores what is saved and has the job_store remember it."""

    def __init__(self, job_store: JobStore, storage: Storage, spool: Spool) -> None:
        self._job_store = job_store
        self._storage = storage
        self._spool = spool
        self._latest: dict[ClaimedJob, Checkpoint] = {}
        self._storing: ClaimedJob | None = None
        self._change = threading.Condition()
        threading.Thread(target=self._work, name="saves", daemon=True).start()

    def keep(self, held: ClaimedJob, save: Checkpoint) -> None:
        """Store this one, instead of an earlier one of the job that still waits."""
        with self._change:
            overtaken = self._latest.pop(held, None)
            self._latest[held] = save
            self._change.notify_all()
        try:
            self._spool.keep_save(held.job_id, save)
        except OSError:
            logger.exception("job %s would not go on from its latest state here", held.job_id)
        if overtaken and overtaken.state != save.state:
            self._spool.drop_state(held.job_id, overtaken.state)

    def flush(self, held: ClaimedJob, timeout_s: float) -> None:
        """Wait until the latest save of this job is stored, or so long."""
        with self._change:
            self._change.wait_for(lambda: held not in self._latest and held is not self._storing, timeout_s)

    def forget(self, held: ClaimedJob, timeout_s: float) -> None:
        """The job has ended: store nothing more of it. Waits for what is being stored, or so long."""
        with self._change:
            held.is_over = True
            self._latest.pop(held, None)
            self._change.wait_for(lambda: held is not self._storing, timeout_s)

    def _work(self) -> None:
        while True:
            held, save = self._next()
            try:
                self._store(held, save)
            except Unavailable as error:
                logger.warning("a state of job %s waits for the storage: %s", held.job_id, error)
                time.sleep(PAUSE_S)
                self._again(held, save)
            except LeaseLost:
                logger.info("job %s is somebody else's, or has ended: its state is of no use", held.job_id)
                retry_while_unavailable(partial(self._job_store.maintenance.report_late_file, held.job_id))
            except (LongCatError, OSError):
                logger.exception("a state of job %s cannot be stored", held.job_id)
            finally:
                self._done()

    def _next(self) -> tuple[ClaimedJob, Checkpoint]:
        with self._change:
            self._change.wait_for(lambda: self._latest)
            self._storing = next(iter(self._latest))
            return self._storing, self._latest.pop(self._storing)

    def _again(self, held: ClaimedJob, save: Checkpoint) -> None:
        with self._change:
            if not held.is_over:
                self._latest.setdefault(held, save)

    def _done(self) -> None:
        with self._change:
            self._storing = None
            self._change.notify_all()

    def _check(self, held: ClaimedJob) -> None:
        """No upload begins after the job ended: when it is looked for what is left, all have arrived."""
        if self._job_store.holder.renew_lease(held.claim) == "lease_lost":
            raise LeaseLost("the lease ran out")

    def _store(self, held: ClaimedJob, save: Checkpoint) -> None:
        before = held.save
        for name in save.files:
            if before is None or name not in before.files:
                self._check(held)
                kind = STATE_TYPE if name == save.state else PIECE_TYPE
                self._storage.put(_key(held.job_id, name), held.folder / name, kind)
        self._job_store.holder.save_checkpoint(held.claim, save.model_dump())
        held.save = save
        if before and before.state != save.state:
            self._storage.delete_prefix(_prefix(held.job_id, before.state))
            self._spool.drop_state(held.job_id, before.state)


def _key(job_id: str, name: str) -> str:
    """Each file has a folder of its own, so that it can be removed alone."""
    return state_key(job_id, f"{PurePath(name).stem}/{name}")


def _prefix(job_id: str, name: str) -> str:
    return f"{job_prefix(job_id)}state/{Path(name).stem}/"
