"""What an error that ended a job on one rank means: for the client, and for the group.

`worker.rank.run_job` asks it once for each job that failed.
"""

from __future__ import annotations

import errno

import torch

from jobs.errors import DiskFull, GenerationFailed, InvalidInput, LongCatError, OutOfMemory
from jobs.record import JobError
from model.spec.errors import InputError, ModelError
from worker.rank.consensus import StepOutcome

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def vote_of(error: Exception) -> StepOutcome:
    """This rank's vote after an error; `contained` for errors that leave a rank as it was."""
    known = _known(error)
    if known is None:
        return StepOutcome(
            error=JobError.of(GenerationFailed(f"{type(error).__name__}: {error}")), contained=False
        )
    return StepOutcome(error=JobError.of(known))


def _known(error: Exception) -> LongCatError | None:
    match error:
        case LongCatError():
            return error
        case InputError():
            return InvalidInput(str(error), error.field)
        case ModelError():
            return GenerationFailed(str(error))
        case OSError() if error.errno in FULL:
            return DiskFull("the worker's disk has no room for the video")
    if _is_out_of_memory(error):
        return OutOfMemory("the video does not fit into the memory of the worker")
    return None


def _is_out_of_memory(error: Exception) -> bool:
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)
