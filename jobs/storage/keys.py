"""Build ids of jobs and the storage keys of their files.

All files of a job have one prefix, so removing a job means removing a prefix. Keys of results contain the
fencing token of its holder, so one that lost the job cannot overwrite the files of the next one.
"""

from __future__ import annotations

import re
from uuid import uuid4

_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_KEY = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_PREFIX = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*/")


def new_job_id() -> str:
    """Return a new job id that cannot be guessed."""
    return uuid4().hex


def job_prefix(job_id: str) -> str:
    """Return the prefix of all files of a job."""
    return checked_prefix(f"jobs/{job_id}/")


def input_key(job_id: str, name: str) -> str:
    """Return the key of an input. `name` is chosen by the service, never by the client."""
    return checked(f"{job_prefix(job_id)}inputs/{name}")


def result_prefix(job_id: str, fence: int) -> str:
    """Return the prefix of the results of the holder with this fencing token."""
    return f"{job_prefix(job_id)}{fence}/"


def video_key(job_id: str, fence: int) -> str:
    """Return the key of the video of the holder with this fencing token."""
    return f"{result_prefix(job_id, fence)}video.mp4"


def thumbnail_key(job_id: str, fence: int) -> str:
    """Return the key of the thumbnail of that video."""
    return f"{result_prefix(job_id, fence)}thumbnail.jpg"


def timeline_key(video: str) -> str:
    """Return the key of the timeline that belongs to the video under this key."""
    return checked(f"{video.rpartition('/')[0]}/timeline.json")


def state_key(job_id: str, name: str) -> str:
    """Return the key of a file of a job's checkpoint, from which any worker can resume."""
    return checked(f"{job_prefix(job_id)}state/{name}")


def job_of(key: str) -> str | None:
    """Return the id of the job that a key belongs to, None if it belongs to none."""
    folder, _, rest = key.partition("/")
    job_id, slash, _ = rest.partition("/")
    return job_id if folder == "jobs" and slash else None


def checked(key: str) -> str:
    """Return a valid key: plain names joined by slashes, none of which starts with a dot.

    Raises ValueError for anything else, so that no key leads out of its storage.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a storage key: {key!r}")
    return key


def checked_prefix(prefix: str) -> str:
    """Return a valid prefix: a key followed by a slash. Raises ValueError for anything else."""
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"not a storage prefix: {prefix!r}")
    return prefix
