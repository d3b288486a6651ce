"""Read weights from an HTTP server, by ranges if it has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from model.weights.manifest import MANIFEST, WeightFile
from model.weights.source import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    Listing,
    SourceError,
    SourceUnavailable,
    parse_manifest,
)

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpSource:
    """A folder with a `weights.json` on an HTTP server.

    The URL may contain secrets: messages name host and file only.
    """

    def __init__(self, url: str, connections: int, read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self._url = httpx.URL(url)
        self.name = f"{self._url.scheme}://{self._url.netloc.decode()}"
        self._client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=connections),
            headers={"Accept-Encoding": "identity"},  # ranges and sizes are those of the file itself
        )

    def list_files(self, timeout_s: float | None = None) -> Listing:
        """See `model.weights.source.Source`. The response shows whether the server has ranges."""
        with self._get(MANIFEST, "bytes=0-", timeout_s) as response:
            manifest = parse_manifest(response.iter_raw(), f"{MANIFEST} of the source")
        return Listing(manifest.files, has_ranges=response.status_code == httpx.codes.PARTIAL_CONTENT)

    def read(self, file: WeightFile, start: int, end: int) -> Iterator[bytes]:
        """See `model.weights.source.Source`. A server without ranges sends the file from its beginning."""
        with self._get(file.path, f"bytes={start}-{end - 1}") as response:
            is_range = response.status_code == httpx.codes.PARTIAL_CONTENT
            if is_range and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise SourceError(f"{file.path}: the server sent a different range than requested")
            yield from _clip(response.iter_raw(), 0 if is_range else start, end - start)

    def close(self) -> None:
        """See `model.weights.source.Source`."""
        self._client.close()

    @contextmanager
    def _get(self, path: str, wanted: str, timeout_s: float | None = None) -> Iterator[httpx.Response]:
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/{path}")
        timeout = self._client.timeout if timeout_s is None else httpx.Timeout(timeout_s)
        try:
            with self._client.stream("GET", url, headers={"Range": wanted}, timeout=timeout) as response:
                _check(response, path)
                yield response
        except httpx.TransportError as error:
            raise SourceUnavailable(f"{path}: {type(error).__name__} {error}".strip()) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # such as too many redirects
            raise SourceError(f"{path}: {type(error).__name__}") from error


def _check(response: httpx.Response, path: str) -> None:
    """Raise SourceError unless the response has the content that was asked for."""
    status = response.status_code
    if status in RETRYABLE:
        pause_s = retry_after_s(response.headers.get("Retry-After"))
        raise SourceUnavailable(f"{path}: the server answers with {status}", pause_s)
    if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise SourceError(f"{path}: the server answers with {status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise SourceError(f"{path}: the server compresses what must be sent as it is")


def retry_after_s(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for: a number, or a date. 0 without a valid one."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return 0.0


def _clip(blocks: Iterable[bytes], skipped: int, wanted: int) -> Iterator[bytes]:
    """Yield `wanted` bytes after the first `skipped` ones."""
    for block in blocks:
        found = block[skipped : skipped + wanted]
        skipped = max(0, skipped - len(block))
        wanted -= len(found)
        if found:
            yield found
        if not wanted:
            return
