"""Define where weights are fetched from, and the errors of a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from model.weights.manifest import Manifest, WeightFile, WeightsError

CHUNK_BYTES = 1 << 20
LARGEST_MANIFEST_BYTES = 16 << 20
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0


class SourceError(WeightsError):
    """The source refused a request, or has something else than it promised. A retry does not help."""


class SourceUnavailable(SourceError):
    """The source cannot be reached at present. `retry_after_s` is the pause that it asks for."""

    retryable = True

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    Attributes:
        has_hashes: whether they come from a manifest, so that each has a SHA-256.
        has_ranges: whether the source can send parts of a file.
    """

    files: tuple[WeightFile, ...]
    has_hashes: bool = True
    has_ranges: bool = True


@runtime_checkable
class Source(Protocol):
    """A folder of weights on a server. Several threads may read at once.

    Attributes:
        name: its address for messages, without secrets.
    """

    name: str

    def list_files(self, timeout_s: float | None = None) -> Listing:
        """Return the files. Raises WeightsError.

        Args:
            timeout_s: the longest wait for a connection and for the next bytes, if not the usual ones.
        """

    def read(self, file: WeightFile, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `end`, fewer if the connection ends. Raises SourceError."""

    def close(self) -> None:
        """Close all connections."""


@dataclass(frozen=True)
class S3Access:
    """Tell how to reach S3. What is None, boto3 finds in its own configuration."""

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None


def parse_manifest(blocks: Iterable[bytes], name: str) -> Manifest:
    """Parse the manifest of a source. Raises WeightsError if it is too large or not valid.

    ETags in it are those of the bucket from which its author fetched the files, so they are left out.
    """
    content = bytearray()
    for block in blocks:
        content += block
        if len(content) > LARGEST_MANIFEST_BYTES:
            raise SourceError(f"{name} is larger than {LARGEST_MANIFEST_BYTES >> 20} MiB")
    manifest = Manifest.parse(bytes(content), name)
    files = (file.model_copy(update={"etag": None}) for file in manifest.files)
    return manifest.model_copy(update={"files": tuple(files)})
