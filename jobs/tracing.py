"""Whether this process tells OpenTelemetry what it does: only where a collector is named. Both sides ask.

OpenTelemetry is an extra (`[otel]`), and nothing of it is imported where it is not wanted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.otel import Tracing

logger = logging.getLogger(__name__)


def open_tracing(process: str, *, wanted: bool) -> Tracing | None:
    """Spans in the name of this process; None where they are not wanted, or the extra is not installed."""
    if not wanted:
        return None
    try:
        from jobs.otel import Tracing  # noqa: PLC0415 - an extra, which most do without
    except ModuleNotFoundError as error:
        logger.warning("no traces are sent: %s is missing, install the extra [otel]", error.name)
        return None
    return Tracing.open(process)
