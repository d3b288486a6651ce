"""The same probes where the kernel cannot filter system calls."""

from __future__ import annotations

from model.media import confinement
from tests.model.media import probes

confinement.can_filter_system_calls = lambda: False
DECODERS = probes.DECODERS
