"""Choose the source of an address."""

from __future__ import annotations

from model.weights.manifest import WeightsError
from model.weights.source import S3Access, Source


def open_source(url: str, connections: int, s3: S3Access) -> Source:
    """Return the source at `s3://bucket/prefix`, `https://…` or `http://…`, without connecting to it.

    Raises WeightsError if the address is none of these, or a library is not installed.
    """
    try:
        if url.startswith("s3://"):
            from model.weights.s3 import S3Source  # noqa: PLC0415 - boto3 is an extra

            return S3Source(url, connections, s3)
        if url.startswith(("https://", "http://")):
            from model.weights.http import HttpSource  # noqa: PLC0415 - the API's image has no use for it

            return HttpSource(url, connections)
    except ModuleNotFoundError as error:
        raise WeightsError(f"{error.name} is not installed: it comes with the extras [worker,s3]") from error
    raise WeightsError("the source must begin with s3://, https:// or http://")
