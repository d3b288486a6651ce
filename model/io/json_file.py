"""Read JSON files of a checkpoint, without torch."""

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
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(path, "is not a JSON object")
    return document


def read_index(path: Path) -> dict[str, Path]:
    """Return the file of each tensor, as the index of a sharded checkpoint says. Raises CheckpointError."""
    weight_map = load_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(path, "has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or "/" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(path, f"weight_map.{name} is {shard!r}, not a safetensors file beside it")
    return {name: path.with_name(shard) for name, shard in weight_map.items()}
