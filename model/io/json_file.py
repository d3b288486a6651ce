"""Read JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from model.spec.errors import CheckpointError


def load_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises CheckpointError if the file has none."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(path, "is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(path, "is not a JSON object")
    return document
