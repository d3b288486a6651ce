"""The jobs' files on this worker's disk: inputs, saved states, pieces, and films that wait for the storage.

One folder for each group, which nobody else touches, and one in it for each job. It outlives the supervisor:
a film that waits in it is stored by the next one, and a job that comes back goes on from what lies here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from worker.messages import Checkpoint, Timings, VideoFile

WAITING, SAVED = "waiting.json", "saved.json"


class Waiting(BaseModel):
    """A finished film, and by which right it was made: the fence of its claim."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fence: int
    film: VideoFile
    timings_s: Timings


class Spool:
    """The folder of one group."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def job_ids(self) -> list[str]:
        """The jobs of which files lie here."""
        return sorted(path.name for path in self._folder.iterdir())

    def path(self, job_id: str) -> Path:
        """A job's own folder, which may not be there."""
        return self._folder / job_id

    def folder(self, job_id: str) -> Path:
        """A job's own folder, made if it is not there. Raises OSError."""
        folder = self.path(job_id)
        folder.mkdir(exist_ok=True)
        return folder

    def keep_film(self, job_id: str, waiting: Waiting) -> None:
        """Remember that the film lies here, whole. Raises OSError."""
        _write(self.folder(job_id) / WAITING, waiting)

    def waiting(self, job_id: str) -> Waiting | None:
        """The film that lies here, if one does."""
        document = _read(self._folder / job_id / WAITING)
        return Waiting.model_validate_json(document) if document else None

    def keep_save(self, job_id: str, save: Checkpoint) -> None:
        """Remember where the job stood last. Raises OSError."""
        _write(self.folder(job_id) / SAVED, save)

    def saved(self, job_id: str) -> Checkpoint | None:
        """Where the job stood last, if all files for it lie here."""
        document = _read(self._folder / job_id / SAVED)
        save = Checkpoint.model_validate_json(document) if document else None
        return save if save and all((self._folder / job_id / name).exists() for name in save.files) else None

    def drop_state(self, job_id: str, name: str) -> None:
        """Remove a saved state that a later one replaced."""
        (self._folder / job_id / name).unlink(missing_ok=True)

    def remove(self, job_id: str) -> None:
        """Remove all files of a job."""
        shutil.rmtree(self._folder / job_id, ignore_errors=True)


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _write(path: Path, document: BaseModel) -> None:
    """A reader sees all of it or what was there before."""
    part = path.with_suffix(".part")
    part.write_text(document.model_dump_json())
    part.replace(path)
