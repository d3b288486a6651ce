"""What can go wrong in the model, beside a wish that is not legal (`model.plan.Illegal`). No torch.

Each error has a stable `code`, a message for people, and says whether a retry can help.
"""

from pathlib import Path


class ModelError(Exception):
    """The root: something that a client or an operator can cause."""

    code = "model_error"
    retryable = False


class CheckpointError(ModelError):
    """A checkpoint file or folder is not what it should be; names the file, and the tensor if any."""

    code = "bad_checkpoint"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class InputError(ModelError):
    """An image, a clip or a saved state that cannot be used; names the field."""

    code = "bad_input"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class GroupError(ModelError):
    """A number of ranks that the transformer cannot be spread over."""

    code = "bad_group"


class DeviceError(ModelError):
    """A device that cannot compute as it was told to."""

    code = "bad_device"


class LeaderError(ModelError):
    """The leader alone failed, with an error that says more there; as the other ranks are told."""

    code = "leader_failed"
