"""Tell the version of the service."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version that is installed, or 0 if the service runs from its source folder."""
    try:
        return version("longcat-video-service")
    except PackageNotFoundError:
        return "0"
