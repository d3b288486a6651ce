"""Define the errors of the model.

`InvalidParams` refuses a request before anything runs. A `ModelError` says what is wrong with a checkpoint,
an input or the machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError


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


@contextmanager
def reported_as(path: Path, problem: str) -> Iterator[None]:
    """Raise CheckpointError, in one line, if a library fails that gets what a file of a checkpoint says."""
    try:
        yield
    except ModelError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the document"
        raise CheckpointError(path, f"{problem}: {key}: {first['msg']}") from error
    except Exception as error:  # libraries raise anything, tokenizers Exception itself
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise CheckpointError(path, " ".join(f"{problem}: {kind}{error}".split())) from error


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
