"""Keep the files of claimed jobs on this worker's disk.

Every group has a folder that nobody else touches, with a folder in it for each job: inputs, checkpoints,
video segments and finished videos. It outlives the supervisor. The next one uploads the videos that it finds
there, and a job that is claimed again resumes from its local checkpoint.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.errors import JobNotFound, Unavailable, UnreadableRecord
from jobs.store.job_store import JobStore
from worker.messages import Checkpoint, Timings, VideoFile

logger = logging.getLogger(__name__)

CLEAN_EVERY_S = 30.0
PENDING_UPLOAD, CHECKPOINT = "waiting.json", "saved.json"
PENDING_UPLOAD_VERSION = 2
"""The newest version of `PendingUpload` that this release reads."""

Document = TypeVar("Document", bound=BaseModel)


class PendingUpload(BaseModel):
    """A finished video that is not stored yet. `fence` is the token of the claim that made it.

    One of a later version than `PENDING_UPLOAD_VERSION` cannot be read: the video is made again.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    fence: int
    video: VideoFile
    timings_s: Timings = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        if self.schema_version > PENDING_UPLOAD_VERSION:
            raise ValueError(f"version {self.schema_version} is later than {PENDING_UPLOAD_VERSION}")
        return self


def log_unreadable(error: UnreadableRecord) -> None:
    """Log a document that is passed over because this release cannot read it."""
    logger.error("passed over a document: %s", error)


class Spool:
    """The folder of one group. `report` is called for each document that cannot be read."""

    def __init__(self, folder: Path, report: Callable[[UnreadableRecord], None] = log_unreadable) -> None:
        self._folder = folder
        self._report = report
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def job_ids(self) -> list[str]:
        """Return the ids of all jobs that have a folder, sorted."""
        return sorted(path.name for path in self._folder.iterdir())

    def check_writable(self) -> None:
        """Write and remove a small file. Raises OSError if the disk does not take it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=self._folder) as file:
            file.write(b"x")

    @property
    def is_unwritable(self) -> bool:
        """Return whether the disk takes no file although it has free space: read-only, or no inodes left."""
        try:
            self.check_writable()
        except OSError:
            return shutil.disk_usage(self._folder).free > 0
        return False

    def job_folder(self, job_id: str) -> Path:
        """Return the job's folder, which may not exist."""
        return self._folder / job_id

    def make_job_folder(self, job_id: str) -> Path:
        """Return the job's folder, created if needed. Raises OSError."""
        folder = self.job_folder(job_id)
        folder.mkdir(exist_ok=True)
        return folder

    def write_pending_upload(self, job_id: str, pending: PendingUpload) -> None:
        """Record that the video is complete in the job's folder. Raises OSError."""
        _write(self.make_job_folder(job_id) / PENDING_UPLOAD, pending)

    def pending_upload(self, job_id: str) -> PendingUpload | None:
        """Return the finished video in the job's folder, None if there is none that can be read."""
        return self._read(self.job_folder(job_id) / PENDING_UPLOAD, PendingUpload)

    def write_checkpoint(self, job_id: str, checkpoint: Checkpoint) -> None:
        """Record the latest checkpoint of the job. Raises OSError."""
        _write(self.make_job_folder(job_id) / CHECKPOINT, checkpoint)

    def checkpoint(self, job_id: str) -> Checkpoint | None:
        """Return the latest checkpoint of the job if it can be read and all of its files exist, else None."""
        checkpoint = self._read(self.job_folder(job_id) / CHECKPOINT, Checkpoint)
        if checkpoint is None:
            return None
        is_complete = all((self.job_folder(job_id) / name).exists() for name in checkpoint.files)
        return checkpoint if is_complete else None

    def remove_state(self, job_id: str, name: str) -> None:
        """Remove a state file that a later checkpoint replaced. If it cannot, the file stays for the job."""
        with suppress(OSError):
            (self.job_folder(job_id) / name).unlink()

    def remove(self, job_id: str) -> None:
        """Remove all files of a job."""
        shutil.rmtree(self.job_folder(job_id), ignore_errors=True)

    def _read(self, path: Path, kind: type[Document]) -> Document | None:
        try:
            return kind.model_validate_json(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._report(UnreadableRecord(f"{path}: {error}"))
            return None


def lock_group_folder(group_folder: Path) -> None:
    """Keep the folder of a group from being adopted for as long as this process lives.

    On a disk that has no locks, none is ever adopted.
    """
    with suppress(OSError):
        fcntl.flock(os.open(group_folder, os.O_RDONLY), fcntl.LOCK_SH)


def adopt(group_folder: Path, spool: Spool) -> None:
    """Move the jobs of a former group to `spool`, and remove its folder.

    Nothing happens while a supervisor of that group lives, as during a drain. If both have files of a job, a
    finished video is kept.
    """
    try:
        descriptor = os.open(group_folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            former = Spool(group_folder / "jobs")
            for job_id in former.job_ids:
                if not spool.pending_upload(job_id):
                    spool.remove(job_id)
                    former.job_folder(job_id).rename(spool.job_folder(job_id))
            shutil.rmtree(group_folder)
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning("the files in %s stay there: %s", group_folder, error)
    else:
        logger.info("took over the files of the former group in %s", group_folder)


def keep_clean(
    spool: Spool, job_store: JobStore, is_held: Callable[[str], bool], stopping: threading.Event
) -> None:
    """Run `clean` every `CLEAN_EVERY_S` until `stopping` is set."""
    while not stopping.is_set():
        try:
            with suppress(Unavailable):
                clean(spool, job_store, is_held)
        except OSError as error:
            logger.warning("the spool cannot be cleaned: %s", error)
        stopping.wait(CLEAN_EVERY_S)


def clean(spool: Spool, job_store: JobStore, is_held: Callable[[str], bool]) -> None:
    """Remove the files of jobs that ended, here or elsewhere, and are not held. Raises Unavailable."""
    for job_id in spool.job_ids:
        if not is_held(job_id) and _has_ended(job_id, job_store):
            spool.remove(job_id)


def _has_ended(job_id: str, job_store: JobStore) -> bool:
    try:
        return job_store.client.get(job_id).ended
    except JobNotFound:
        return True
    except UnreadableRecord:  # another release may resume it
        return False


def _write(path: Path, document: BaseModel) -> None:
    """Replace the file atomically."""
    part = path.with_suffix(".part")
    part.write_text(document.model_dump_json())
    part.replace(path)
