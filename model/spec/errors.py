"""Define the errors of the model.

`InvalidParams` refuses a request before anything runs. A `ModelError` says what is wrong with a checkpoint,
an input or the machine.
"""

from pathlib import Path


class InvalidParams(ValueError):
    """The options are not valid: `field` is the field of the request, `rule` the rule that it breaks."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class ModelError(Exception):
    """The base of all errors that a client or an operator can cause."""


class CheckpointError(ModelError):
    """A file or folder of a checkpoint is missing or wrong. The message names it, and the tensor if any."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class InputError(ModelError):
    """An image, a clip or a saved state cannot be used. The message names the field of the request."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class GroupError(ModelError):
    """The model cannot be run on this number of ranks."""


class DeviceError(ModelError):
    """The device does not support what was asked for."""


class LeaderError(ModelError):
    """The leader failed with an error that is not a ModelError. Raised on the other ranks."""
