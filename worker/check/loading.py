"""Check that a worker can load the checkpoint."""

from __future__ import annotations

from pathlib import Path

from model.spec.errors import CheckpointError


def loading_error(checkpoint: Path) -> str | None:
    """Return why a worker could not load the checkpoint, None if it could.

    The checkpoint is loaded as a rank does it, but onto the meta device. So all configurations, the
    tokenizer, and the names and shapes of all tensors are read, and no weights.
    """
    import torch  # noqa: PLC0415 - the import takes seconds

    from model.parallel.mesh import ContextParallel  # noqa: PLC0415
    from model.pipeline.pipeline import Pipeline  # noqa: PLC0415

    try:
        Pipeline.load(checkpoint, torch.bfloat16, ContextParallel(torch.device("meta")))
    except CheckpointError as error:
        return str(error)
    return None
