"""Read the sizes of a checkpoint from the headers of its files, without torch and without reading weights."""

from collections.abc import Iterator
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from model.io.json_file import load_json
from model.spec.errors import CheckpointError
from model.spec.memory import WAN_CHANNELS, CheckpointSizes
from model.transformer.config import load_dit_config, quantised_weights, stays_float32
from model.weights.manifest import check_complete


def read_sizes(checkpoint: Path) -> CheckpointSizes:
    """Return the sizes of a checkpoint. Raises CheckpointError if a file is missing or cannot be read."""
    check_complete(checkpoint)
    config = load_dit_config(checkpoint / "dit" / "config.json")
    transformer = dict(_tensors(checkpoint / "dit"))
    quantised = quantised_weights(config.depth)
    return CheckpointSizes(
        transformer=sum(transformer.values()),
        quantised=sum(size for name, size in transformer.items() if name in quantised),
        float32=sum(size for name, size in transformer.items() if stays_float32(name)),
        text_encoder=sum(size for _, size in _tensors(checkpoint / "text_encoder")),
        vae=sum(size for _, size in _tensors(checkpoint / "vae")),
        width=config.hidden_size,
        depth=config.depth,
        blocks=sum(size for name, size in transformer.items() if name.startswith("blocks.")),
        vae_channels=load_json(checkpoint / "vae" / "config.json").get("base_dim", WAN_CHANNELS),
    )


def _tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of elements of each tensor of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(folder, "has no safetensors file")
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    yield name, prod(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(path, f"cannot be read: {error}") from error
