"""Names of jobs and of their files in storage; the service and the worker build none themselves.

All files of a job lie under one prefix, so that removing a job is removing a prefix. What a worker writes
carries the attempt, so that a holder who lost the job cannot overwrite what the next one stored.
"""

from __future__ import annotations

import re
from uuid import uuid4

_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_KEY = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_PREFIX = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*/")


def new_job_id() -> str:
    """A job id that nobody can guess."""
    return uuid4().hex


def job_prefix(job_id: str) -> str:
    """Where all files of a job lie."""
    return checked_prefix(f"jobs/{job_id}/")


def input_key(job_id: str, name: str) -> str:
    """An input that the service checked and stored; `name` is the service's, never the client's."""
    return checked(f"{job_prefix(job_id)}inputs/{name}")


def attempt_prefix(job_id: str, attempt: int) -> str:
    """Where one attempt stores its results."""
    return f"{job_prefix(job_id)}{attempt}/"


def video_key(job_id: str, attempt: int) -> str:
    """The finished video of an attempt."""
    return f"{attempt_prefix(job_id, attempt)}video.mp4"


def thumbnail_key(job_id: str, attempt: int) -> str:
    """The still picture of an attempt's video."""
    return f"{attempt_prefix(job_id, attempt)}thumbnail.jpg"


def timeline_key(video: str) -> str:
    """The picture of how an attempt went, beside its video of this key."""
    return checked(f"{video.rpartition('/')[0]}/timeline.json")


def state_key(job_id: str, name: str) -> str:
    """A saved state of a job, from which any worker resumes."""
    return checked(f"{job_prefix(job_id)}state/{name}")


def job_of(key: str) -> str | None:
    """The job that a file belongs to, None if the key is not of a job."""
    folder, _, rest = key.partition("/")
    job_id, slash, _ = rest.partition("/")
    return job_id if folder == "jobs" and slash else None


def checked(key: str) -> str:
    """The same key, if it is one: plain names joined by slashes, none beginning with a dot.

    Raises ValueError for anything else; no key can leave its storage.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a storage key: {key!r}")
    return key


def checked_prefix(prefix: str) -> str:
    """The same prefix, if it is a key with a slash behind it. Raises ValueError for anything else."""
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"not a storage prefix: {prefix!r}")
    return prefix
