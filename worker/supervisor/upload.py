"""A finished film's way to the storage: tried again for as long as it may take, never generated again.

`worker.supervisor.finalize` does this in a thread of its own while the group works on the next job.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from jobs.errors import LongCatError, UploadFailed
from jobs.record import Result
from jobs.storage.base import Storage
from jobs.storage.keys import thumbnail_key, timeline_key, video_key
from worker.messages import VideoFile
from worker.supervisor.job import ClaimedJob
from worker.supervisor.retry import retry_while_unavailable
from worker.supervisor.timeline import timeline

logger = logging.getLogger(__name__)

TIMELINE = "timeline.json"


class Upload:
    """Stores films. `limit_s` bounds how long the storage may be away."""

    def __init__(self, storage: Storage, limit_s: float) -> None:
        self._storage = storage
        self._limit_s = limit_s

    def store(self, held: ClaimedJob, film: VideoFile, may_go_on: Callable[[], None]) -> Result:
        """Store the film and its thumbnail under keys of this attempt.

        Raises UploadFailed after the limit, DiskFull, and what `may_go_on` raises.
        """
        began = time.monotonic()

        def in_time() -> None:
            may_go_on()
            if time.monotonic() - began > self._limit_s:
                raise UploadFailed(f"the storage was away for {self._limit_s:.0f} s")

        job_id, attempt = held.job_id, held.claim.attempt
        video, thumbnail = video_key(job_id, attempt), thumbnail_key(job_id, attempt)
        with held.stages.doing("video", "storage"):
            retry_while_unavailable(
                lambda: self._storage.put(video, held.folder / film.video, "video/mp4"), in_time
            )
        with held.stages.doing("thumbnail", "storage"):
            still = held.folder / film.thumbnail
            retry_while_unavailable(lambda: self._storage.put(thumbnail, still, "image/jpeg"), in_time)
        self._tell(held, timeline_key(video))
        held.timings_s = {**held.timings_s, "upload": time.monotonic() - began}
        return Result(
            video_key=video,
            thumbnail_key=thumbnail,
            width=film.width,
            height=film.height,
            num_frames=film.num_frames,
            fps=film.fps,
            duration_s=film.num_frames / film.fps,
            size_bytes=film.size_bytes,
            sha256=film.sha256,
            seed=held.claim.job.order.seed,
            dtype=film.dtype,
        )

    def _tell(self, held: ClaimedJob, key: str) -> None:
        """Store how the job went; it succeeds without that, too."""
        path = held.folder / TIMELINE
        try:
            path.write_text(json.dumps(timeline(held.claim, held.stages.so_far)))
            self._storage.put(key, path, "application/json")
        except (LongCatError, OSError) as error:
            logger.warning("job %s has no timeline: %s", held.job_id, error)
