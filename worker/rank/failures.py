"""Classify the error that ended a job on a rank, for the client and for the group."""

from __future__ import annotations

import torch

from jobs.errors import DISK_FULL_ERRNOS, DiskFull, GenerationFailed, InvalidInput, LongCatError, OutOfMemory
from jobs.record import JobError
from model.spec.errors import InputError, ModelError
from worker.rank.consensus import StepOutcome


def outcome_of(error: Exception) -> StepOutcome:
    """Return the outcome of this rank after an error. Unknown errors are not contained."""
    known = _known(error)
    if known is None:
        failure = GenerationFailed(f"{type(error).__name__}: {error}")
        return StepOutcome(error=JobError.of(failure), is_contained=False)
    return StepOutcome(error=JobError.of(known))


def _known(error: Exception) -> LongCatError | None:
    """Return an error that leaves the rank sound as the client sees it, None for any other error."""
    match error:
        case LongCatError():
            return error
        case InputError():
            return InvalidInput(str(error), error.field)
        case ModelError():
            return GenerationFailed(str(error))
        case OSError() if error.errno in DISK_FULL_ERRNOS:
            return DiskFull("the worker's disk is too full for the video")
    if _is_out_of_memory(error):
        return OutOfMemory("the video does not fit into the memory of the worker")
    return None


def _is_out_of_memory(error: Exception) -> bool:
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)
