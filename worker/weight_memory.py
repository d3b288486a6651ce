"""Create the memory in which the ranks of a machine share weights, and hand it to processes.

The process that creates it outlives the ranks, so those that start again find the weights.
"""

from __future__ import annotations

import logging
import os

logger = logging.getLogger(__name__)


def create_weight_memory() -> int | None:
    """Create the memory, empty, and return its descriptor.

    Return None where the system refuses such memory: the ranks do without it.
    """
    try:
        return os.memfd_create("longcat-weights")
    except OSError as error:
        logger.warning("ranks share no weights, and each change of LoRA reads files: %s", error)
        return None


def weight_memory_option(memory: int | None) -> list[str]:
    """Return the command-line option that names the memory to a process, which must inherit it."""
    return [] if memory is None else ["--weight-memory", str(memory)]


def inherited_files(memory: int | None) -> tuple[int, ...]:
    """Return the descriptors that such a process inherits."""
    return () if memory is None else (memory,)
