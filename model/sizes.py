"""Read the sizes of a checkpoint from the headers of its files, without torch and without reading weights."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from model.io.json_file import load_json, read_index
from model.io.lora_files import lora_files, split_key
from model.spec.errors import CheckpointError, DeviceError
from model.spec.memory import WAN_CHANNELS, CheckpointSizes, Setup, weight_bytes
from model.transformer.config import load_dit_config, quantised_weights, stays_float32
from model.weights.manifest import check_complete

SCALE_BYTES = 4  # of a row of a quantised matrix


def read_sizes(checkpoint: Path) -> CheckpointSizes:
    """Return the sizes of a checkpoint. Raises CheckpointError if a file is missing or cannot be read."""
    check_complete(checkpoint)
    vae = checkpoint / "vae" / "config.json"
    vae_channels = load_json(vae).get("base_dim", WAN_CHANNELS)
    if not isinstance(vae_channels, int):
        raise CheckpointError(vae, f"base_dim is {vae_channels!r}")
    config = load_dit_config(checkpoint / "dit" / "config.json")
    transformer = {name: prod(shape) for name, shape in _shapes_in(checkpoint / "dit")}
    quantised = quantised_weights(config.depth)
    return CheckpointSizes(
        transformer=sum(transformer.values()),
        quantised=sum(size for name, size in transformer.items() if name in quantised),
        float32=sum(size for name, size in transformer.items() if stays_float32(name)),
        text_encoder=sum(prod(shape) for _, shape in _shapes_in(checkpoint / "text_encoder")),
        vae=sum(prod(shape) for _, shape in _shapes_in(checkpoint / "vae")),
        width=config.hidden_size,
        depth=config.depth,
        blocks=sum(size for name, size in transformer.items() if name.startswith("blocks.")),
        vae_channels=vae_channels,
    )


def check_weights_fit(checkpoint: Path, setup: Setup, free_bytes: int, *, is_leader: bool) -> None:
    """Raise DeviceError if the weights of this rank do not fit into its GPU, before any is loaded."""
    needed = weight_bytes(read_sizes(checkpoint), setup, is_leader=is_leader)
    if needed > free_bytes:
        raise DeviceError(
            f"the weights take {needed / 1e9:.1f} GB on this GPU, which has {free_bytes / 1e9:.1f} GB free; "
            "`python -m worker.check` says what fits"
        )


def read_prepared_bytes(checkpoint: Path, setup: Setup) -> int:
    """Return the host memory of the weights that LoRAs change, merged with each and without.

    If blocks are streamed, all of their weights are counted.

    Raises CheckpointError if a file is missing, cannot be read, or changes no module of the transformer.
    """
    config = load_dit_config(checkpoint / "dit" / "config.json")
    shapes = dict(_shapes_in(checkpoint / "dit"))
    loras = []
    for path in lora_files(checkpoint).values():
        modules = {split_key(key)[0] for key, _ in _shapes_of(path)}
        if unknown := sorted(module for module in modules if f"{module}.weight" not in shapes):
            raise CheckpointError(path, f"{unknown[0]} is not a module of the transformer")
        loras.append(modules)
    return prepared_bytes(shapes, loras, config.depth, setup)


def prepared_bytes(
    shapes: Mapping[str, Sequence[int]], loras: Sequence[AbstractSet[str]], depth: int, setup: Setup
) -> int:
    """Return the bytes of `model.transformer.prepared_weights`, without what aligns tensors.

    Args:
        shapes: shape of each tensor of the transformer.
        loras: the modules that each LoRA changes.
        depth: blocks of the transformer.
        setup: how the group runs it.
    """
    quantised = frozenset() if setup.quantize == "none" else quantised_weights(depth)

    def tensor_bytes(name: str) -> int:
        size = prod(shapes[name])
        if name in quantised:
            return size + SCALE_BYTES * shapes[name][0]
        return size * (4 if stays_float32(name) else setup.element_bytes)

    merged = [{f"{module}.weight" for module in modules} for modules in loras]
    streamed = {name for name in shapes if name.startswith("blocks.")} if setup.stream_weights else set[str]()
    return sum(tensor_bytes(name) for names in (streamed.union(*merged), *merged) for name in names)


def _shapes_in(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the shape of each tensor of a folder."""
    indexes = folder.glob("*.safetensors.index.json")
    indexed = {path for index in indexes for path in read_index(index).values()}
    files = sorted(indexed or folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(folder, "has no safetensors file")
    for path in files:
        yield from _shapes_of(path)


def _shapes_of(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the shape of each tensor of a file."""
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a mapping
                yield name, file.get_slice(name).get_shape()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
