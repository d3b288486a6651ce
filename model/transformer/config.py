"""Read the configuration of the transformer, `dit/config.json`.

Keys that only choose a kernel (`enable_flashattn2`, `cp_split_hw`, …) do not change the result and are
ignored, and so are unknown keys that are null or false. Any other unknown key could change the result and is
refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from model.io.json_file import load_json
from model.spec.errors import CheckpointError

FFN_MULTIPLE = 256
LARGEST = 1 << 16  # number in a configuration; none comes near it
IGNORED_PREFIXES = ("_", "enable_", "cp_split_hw")
QUANTISED = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.proj", "ffn.w1", "ffn.w2", "ffn.w3")
"""The large matrices of a block, which can be quantised in all blocks but the first and the last."""


def quantised_weights(depth: int) -> frozenset[str]:
    """Return the names of the weights that can be quantised, in a transformer of so many blocks."""
    return frozenset(f"blocks.{i}.{name}.weight" for i in range(1, depth - 1) for name in QUANTISED)


def stays_float32(name: str) -> bool:
    """Return whether a weight of the transformer is in fp32 whatever the dtype of the others."""
    return "adaLN_modulation" in name or name.startswith(("t_embedder.", "final_layer."))


Triple = tuple[int, int, int]


@dataclass(frozen=True)
class BrickConfig:
    """Parameters of block-sparse attention, named as in `dit/config.json`; see `Bricks`."""

    sparsity: float | None = 0.9375
    cdf_threshold: float | None = None
    chunk_3d_shape_q: Triple = (4, 4, 4)
    chunk_3d_shape_k: Triple = (4, 4, 4)


@dataclass(frozen=True)
class DitConfig:
    """Sizes of the transformer, named as in `dit/config.json`. Defaults are those of the release."""

    hidden_size: int = 4096
    depth: int = 48
    num_heads: int = 32
    caption_channels: int = 4096
    mlp_ratio: float = 4
    adaln_tembed_dim: int = 512
    frequency_embedding_size: int = 256
    patch_size: Triple = (1, 2, 2)
    in_channels: int = 16
    out_channels: int = 16
    text_tokens_zero_pad: bool = True
    bsa_params: BrickConfig = field(default_factory=BrickConfig)

    @property
    def head_dim(self) -> int:
        """Return the width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_size(self) -> int:
        """Return the hidden width of the feed-forward, 2/3 · mlp_ratio · width, in whole multiples of 256."""
        hidden = int(2 / 3 * int(self.hidden_size * self.mlp_ratio))
        return -(-hidden // FFN_MULTIPLE) * FFN_MULTIPLE


def load_dit_config(path: Path) -> DitConfig:
    """Read `dit/config.json`. Raises CheckpointError."""
    document = load_json(path)
    values = _known(DitConfig, document, path)
    if bricks := values.get("bsa_params"):
        values["bsa_params"] = BrickConfig(**_known(BrickConfig, bricks, path))
    else:
        values.pop("bsa_params", None)
    config = DitConfig(**values)
    if config.hidden_size % config.num_heads:
        raise CheckpointError(
            path, f"hidden_size {config.hidden_size} does not divide by {config.num_heads} heads"
        )
    if config.patch_size[0] != 1:
        raise CheckpointError(
            path, f"patch_size {list(config.patch_size)} spans frames, which is not supported"
        )
    return config


def _known(kind: type, document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    unknown = {
        key for key, value in document.items() if key not in names and _could_change_result(key, value)
    }
    if unknown:
        raise CheckpointError(path, f"has keys that are not understood: {sorted(unknown)}")
    values = {key: _frozen(value) for key, value in document.items() if key in names}
    for entry in fields(kind):
        if entry.name in values and not _fits(values[entry.name], entry.type):
            raise CheckpointError(path, f"{entry.name} is {values[entry.name]!r}")
    return values


def _could_change_result(key: str, value: object) -> bool:
    return value is not None and value is not False and not key.startswith(IGNORED_PREFIXES)


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401 a field may have any type
    if kind == Triple:
        return isinstance(value, tuple) and len(value) == 3 and all(_fits(side, int) for side in value)
    if kind is BrickConfig:
        return value is None or isinstance(value, dict)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if value is None:
        return isinstance(value, kind)
    if kind is int:
        return isinstance(value, int) and 0 < value <= LARGEST
    return isinstance(value, int | float) and 0 <= value <= LARGEST


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
