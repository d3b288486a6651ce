"""Store a finished video, its thumbnail and its timeline.

A failed upload is repeated for as long as it may take; the video is never generated again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from jobs.errors import LongCatError, UploadFailed
from jobs.record import Result
from jobs.storage.base import Storage
from jobs.storage.keys import thumbnail_key, timeline_key, video_key
from worker.messages import VideoFile
from worker.supervisor.job import ClaimedJob
from worker.supervisor.retry import retry_while_unavailable
from worker.supervisor.trace_events import trace_events

logger = logging.getLogger(__name__)

TIMELINE = "timeline.json"


class Uploader:
    """Store videos. `limit_s` bounds how long the storage may be unavailable."""

    def __init__(self, storage: Storage, limit_s: float, stopping: threading.Event) -> None:
        self._storage = storage
        self._limit_s = limit_s
        self._stopping = stopping

    def upload(self, job: ClaimedJob, video: VideoFile, check: Callable[[], None]) -> Result:
        """Store the files under keys of this attempt, and return the job's result.

        `check` runs before each repetition. Raises UploadFailed after the limit, DiskFull, JobInterrupted,
        and what `check` raises.
        """
        began = time.monotonic()

        def check_limit() -> None:
            check()
            if time.monotonic() - began > self._limit_s:
                raise UploadFailed(f"the storage was unavailable for {self._limit_s:.0f} s")

        fence = job.lease.fence
        keys = video_key(job.job_id, fence), thumbnail_key(job.job_id, fence)
        for name, key, file, media_type in (
            ("video", keys[0], video.video, "video/mp4"),
            ("thumbnail", keys[1], video.thumbnail, "image/jpeg"),
        ):
            with job.timeline.measure(name, "storage"):
                put = partial(self._storage.put, key, job.folder / file, media_type)
                retry_while_unavailable(put, check_limit, self._stopping)
        self._upload_timeline(job, timeline_key(keys[0]))
        job.timings_s = {**job.timings_s, "upload": time.monotonic() - began}
        return Result(
            video_key=keys[0],
            thumbnail_key=keys[1],
            width=video.width,
            height=video.height,
            num_frames=video.num_frames,
            fps=video.fps,
            duration_s=video.num_frames / video.fps,
            size_bytes=video.size_bytes,
            sha256=video.sha256,
            seed=job.lease.job.order.seed,
            dtype=video.dtype,
            model=video.model,
            weights=video.weights,
        )

    def _upload_timeline(self, job: ClaimedJob, key: str) -> None:
        """Store the timeline once; the job succeeds without it, too."""
        path = job.folder / TIMELINE
        try:
            path.write_text(json.dumps(trace_events(job.lease, job.timeline.intervals)))
            self._storage.put(key, path, "application/json")
        except (LongCatError, OSError) as error:
            logger.warning("job %s has no timeline: %s", job.job_id, error)
