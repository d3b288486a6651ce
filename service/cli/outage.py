"""Tell that a command waits for a service that does not answer."""

from __future__ import annotations

import time
from typing import TextIO

from tqdm import tqdm

from longcat_video_client import ApiError

_PATIENCE_S = 2.0


class OutageNotice:
    """Tells once on `stream` that the service at `url` is waited for: before a retry after the first 2 s.

    `RetryPolicy.on_retry` calls it.
    """

    def __init__(self, url: str, stream: TextIO) -> None:
        self._url = url
        self._stream = stream
        self._due_at = time.monotonic() + _PATIENCE_S

    def __call__(self, error: ApiError, delay_s: float) -> None:
        """Tell it if the next attempt comes after the first 2 s."""
        if time.monotonic() + delay_s > self._due_at:
            self._due_at = float("inf")
            reason = error.message if error.status else "no answer"
            tqdm.write(f"waiting for {self._url}: {reason}", file=self._stream)  # keeps a progress bar whole
