"""Read LoRA files, check them against the transformer, and merge them into its weights.

Merging is fp32 arithmetic on the base weight of the checkpoint. A weight therefore depends only on the base
and on the active file, never on files that were active before: switching back to the base gives bit-identical
weights. The results can be kept in the memory of the host (`model.transformer.prepared_weights`), from where
streamed blocks are fetched without a copy; without that, each switch reads the base weights from the
checkpoint and merges again.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.io.checkpoint import open_safetensors
from model.io.lora_files import PREFIX, split_key
from model.spec.errors import CheckpointError, DeviceError
from model.spec.memory import format_bytes
from model.transformer.dit import Dit
from model.transformer.prepared_weights import ModuleTensors, PreparedWeights, Variants
from model.transformer.quantised_linear import QuantisedLinear
from model.transformer.streamed_blocks import lock_pages

logger = logging.getLogger(__name__)

DOWN, ALPHA = "lora_down.weight", "alpha_scale"
MERGED = ("weight", "scale")
"""The tensors of a module that a LoRA changes; a scale is that of a quantised weight."""

UP = re.compile(r"lora_up\.(?:blocks\.(\d+)\.)?weight")


class LoraError(CheckpointError):
    """A LoRA file does not fit the transformer or is incomplete; the message names file and key."""


@runtime_checkable
class WeightSource(Protocol):
    """The source of base weights: the files of the checkpoint (`Weights`)."""

    def read(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        """Read a tensor to the device, in the shape and dtype of `like`."""
        ...


@runtime_checkable
class OpenFile(Protocol):
    """The part of an open safetensors file that is used here."""

    def get_tensor(self, name: str) -> Tensor:
        """Read a tensor."""
        ...


@dataclass(frozen=True)
class LowRank:
    """The keys of one module's update. Part i of its rows is up_i · (part i of down)."""

    down: str
    ups: tuple[str, ...]
    alpha: str

    def delta(self, file: OpenFile, device: torch.device) -> Float[Tensor, "out in"]:
        """Return alpha_scale · up · down, in fp32 on the device."""
        down, *ups = (file.get_tensor(key).to(device, torch.float32) for key in (self.down, *self.ups))
        rows = [up @ part for up, part in zip(ups, down.chunk(len(ups)), strict=True)]
        return torch.cat(rows) * file.get_tensor(self.alpha).to(device, torch.float32)


@dataclass(frozen=True)
class LoraFile:
    """A checked LoRA file, and its updates by the path of the module in the transformer."""

    path: Path
    modules: Mapping[str, LowRank]


@dataclass(frozen=True)
class WeightMemory:
    """Host memory for weights, which all processes of a machine share.

    Attributes:
        path: a file in memory that each of them can open, such as `/proc/PID/fd/N` of a `memfd_create`.
        max_bytes: how much of it may be used.
        fingerprint: tells the weights and LoRA files from others.
    """

    path: Path
    max_bytes: int
    fingerprint: str


class LoraMerger:
    """Switches between the LoRA files that can be merged into the weights of a transformer.

    Where weights are sharded, each rank writes those modules of which it holds a part.
    """

    def __init__(self, transformer: Dit, base: WeightSource, files: Mapping[str, LoraFile]) -> None:
        self._linears = _linears(transformer)
        self._transformer = transformer
        self._block_weights = transformer.block_weights
        self._base = base
        self._files = files
        self._prepared: PreparedWeights | None = None
        self._changed: frozenset[str] = frozenset()  # modules whose weight may differ from the base
        self._active: str | None = None
        self._complete = True  # False while a switch is writing weights

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the files."""
        return frozenset(self._files)

    @property
    def active(self) -> str | None:
        """Return the name of the merged file, or None for the base. The last switch must be complete."""
        assert self._complete
        return self._active

    def prepare(self, memory: WeightMemory) -> bool:
        """Merge all files now and keep the results, so that no switch reads the checkpoint again.

        Of blocks that are streamed, all weights are kept, and the blocks are fetched from there from now on.
        Processes with the same memory share the work and the results. Nothing is kept if it needs more than
        the memory may have, or if the memory has the weights of another checkpoint: then return False.

        Raises:
            LoraError: a file has changed or gone since it was read.
            CheckpointError: the base weights cannot be read again.
            DeviceError: the memory cannot be locked, from which streamed blocks would be fetched.
        """
        kept = self._kept()
        if not kept:
            return False
        prepared = PreparedWeights(kept, memory.fingerprint)
        if refusal := _open(prepared, memory):
            effect = "each rank keeps a copy of all blocks and " if self._block_weights.streamed else ""
            logger.warning("%sLoRAs are read again at each switch: %s", effect, refusal)
            return False
        with ExitStack() as stack:
            opened = {
                name: stack.enter_context(open_safetensors(file.path)) for name, file in self._files.items()
            }
            prepared.fill(partial(self._merge_all, opened, kept))
        logger.info("weights are kept in %s of host memory", format_bytes(prepared.size_bytes))
        device = self._transformer.x_embedder.proj.weight.device
        if device.type == "cuda":
            _lock_pages(prepared, device, is_streamed=bool(self._block_weights.streamed))
        self._prepared = prepared
        for module in {name.rpartition(".")[0] for name in self._block_weights.streamed}:
            self._write(module, prepared.read(module, None))
        return True

    def switch(self, name: str | None) -> None:
        """Merge a file into the base weights, or restore the base if `name` is None.

        Only modules that the old or the new file changes are written. After a failure the switch can be
        repeated.

        Raises:
            LoraError: the file has changed or gone since it was read.
            CheckpointError: the base weights cannot be read again.
        """
        if self._complete and name == self._active:
            return
        file = self._files[name] if name is not None else None
        now = frozenset(file.modules) if file else frozenset()
        self._changed, self._complete = self._changed | now, False
        with open_safetensors(file.path) if file and not self._prepared else nullcontext() as tensors:
            for module in filter(self._block_weights.holds, sorted(self._changed)):
                lora = name if module in now else None
                if self._prepared:
                    self._write(module, self._prepared.read(module, lora))
                else:
                    self._write(module, self._merge(module, lora, tensors))
        self._changed, self._active, self._complete = now, name, True

    def _kept(self) -> dict[str, Variants]:
        """Return tensors like those that the memory keeps, by module."""
        own: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in self._transformer.state_dict().items():
            module, _, leaf = name.rpartition(".")
            is_merged = leaf in MERGED and bool(self._files_of(module))
            if is_merged or name in self._block_weights.streamed:
                own[module][leaf] = tensor
        kept: dict[str, Variants] = {}
        for module, tensors in own.items():
            merged = {leaf: tensor for leaf, tensor in tensors.items() if leaf in MERGED}
            kept[module] = {None: tensors, **dict.fromkeys(self._files_of(module), merged)}
        return kept

    def _files_of(self, module: str) -> list[str]:
        return [name for name, file in self._files.items() if module in file.modules]

    def _merge_all(
        self, opened: Mapping[str, OpenFile], kept: Mapping[str, Variants], module: str
    ) -> Variants:
        """Return what is kept of a module, for the base and for each file that changes it."""
        linear = self._linears.get(module)
        others = {
            leaf: self._base.read(f"{module}.{leaf}", like, like.device)
            for leaf, like in kept[module][None].items()
            if linear is None or leaf not in MERGED
        }
        if linear is None:
            return {None: others}
        base = self._read(module)
        variants: dict[str | None, ModuleTensors] = {None: {**others, **self._convert(module, base)}}
        for name in self._files_of(module):
            variants[name] = self._convert(module, base + self._delta(module, name, opened[name]))
        return variants

    def _merge(self, module: str, name: str | None, tensors: OpenFile | None) -> ModuleTensors:
        """Return the tensors of a module with an opened file merged into them, or those of the base."""
        value = self._read(module)
        if name is not None and tensors is not None:
            value = value + self._delta(module, name, tensors)
        return self._convert(module, value)

    def _delta(self, module: str, name: str, tensors: OpenFile) -> Float[Tensor, "out in"]:
        return self._files[name].modules[module].delta(tensors, self._linears[module].weight.device)

    def _read(self, module: str) -> Float[Tensor, "out in"]:
        """Read the base weight in fp32."""
        weight = self._linears[module].weight
        like = torch.empty_like(weight, dtype=torch.float32, device="meta")
        return self._base.read(f"{module}.weight", like, weight.device)

    def _convert(self, module: str, value: Float[Tensor, "out in"]) -> ModuleTensors:
        """Return the tensors of a module with this weight, rounded or quantised as they are when loaded."""
        linear = self._linears[module]
        if isinstance(linear, QuantisedLinear):
            return linear.quantised(value)
        return {"weight": value.to(linear.weight.dtype)}

    @torch.no_grad()
    def _write(self, module: str, tensors: ModuleTensors) -> None:
        for name, content in tensors.items():
            if not self._block_weights.store(f"{module}.{name}", content):
                getattr(self._linears[module], name).copy_(content)


def _open(prepared: PreparedWeights, memory: WeightMemory) -> str | None:
    """Open the memory. Return why it cannot be used, None if it can."""
    if prepared.size_bytes > memory.max_bytes:
        needed, limit = format_bytes(prepared.size_bytes), format_bytes(memory.max_bytes)
        return f"to keep them takes {needed} of host memory, and they may take {limit}"
    try:
        has_these_weights = prepared.open(memory.path)
    except OSError as error:
        return str(error)
    return None if has_these_weights else "weights changed, restart the worker"


def _lock_pages(prepared: PreparedWeights, device: torch.device, *, is_streamed: bool) -> None:
    """Lock the pages of the memory, so that CUDA copies from it at full speed.

    Raises DeviceError if they cannot be locked and blocks are streamed from there.
    """
    try:
        lock_pages(prepared.memory)
    except DeviceError as error:
        if is_streamed:
            raise
        logger.warning("switches of LoRA take longer: %s", error)
        with suppress(RuntimeError):  # CUDA reports its error once more, at the next kernel
            torch.zeros(1, device=device)


def read_lora(path: Path, transformer: nn.Module) -> LoraFile:
    """Read a LoRA file's keys and shapes, and check that every one fits the transformer.

    Raises:
        LoraError: a key fits no module, or a tensor is missing or has the wrong shape.
        CheckpointError: the file cannot be read.
    """
    linears = _linears(transformer)
    with open_safetensors(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    pieces: dict[str, dict[str, str]] = defaultdict(dict)
    for key in shapes:
        module, piece = _parse(path, key)
        if module not in linears:
            raise LoraError(path, f"{key} fits no module of the transformer")
        pieces[module][piece] = key
    modules = {module: _low_rank(path, found) for module, found in sorted(pieces.items())}
    for module, low_rank in modules.items():
        _check_shapes(path, low_rank, shapes, tuple(linears[module].weight.shape))
    return LoraFile(path, modules)


def _linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Return the modules whose weight a LoRA can change, by path."""
    modules = transformer.named_modules()
    return {path: module for path, module in modules if isinstance(module, nn.Linear)}


def _parse(path: Path, key: str) -> tuple[str, str]:
    """Split a key into the module path and the name of the tensor."""
    module, piece = split_key(key)
    if not key.startswith(PREFIX) or not (piece in (DOWN, ALPHA) or UP.fullmatch(piece)):
        raise LoraError(path, f"{key} is not a LoRA key")
    return module, piece


def _low_rank(path: Path, found: Mapping[str, str]) -> LowRank:
    """Collect the keys of one module: one `up`, or parts of it, `blocks.0`, `blocks.1`, … without a gap."""
    whole = "lora_up.weight"
    parts = [piece for piece in found if UP.fullmatch(piece) and piece != whole]
    ups = [f"lora_up.blocks.{i}.weight" for i in range(len(parts))] or [whole]
    for piece in (DOWN, *ups, ALPHA):
        if piece not in found:
            raise LoraError(path, f"{_sibling(found, piece)} is missing")
    if parts and whole in found:
        raise LoraError(path, f"{found[whole]} stands beside blocks of the same module")
    return LowRank(found[DOWN], tuple(found[up] for up in ups), found[ALPHA])


def _sibling(found: Mapping[str, str], piece: str) -> str:
    """Return the key of a missing tensor of the same module."""
    other, key = next(iter(found.items()))
    return key.removesuffix(other) + piece


def _check_shapes(
    path: Path, low_rank: LowRank, shapes: Mapping[str, tuple[int, ...]], weight: tuple[int, ...]
) -> None:
    (out, inner), num_parts = weight, len(low_rank.ups)
    if out % num_parts:
        raise LoraError(
            path, f"{low_rank.ups[-1]} is one of {num_parts} blocks, which do not divide {out} rows"
        )
    rank = (*shapes[low_rank.down], 0)[0] // num_parts
    wanted: dict[str, tuple[int, ...]] = dict.fromkeys(low_rank.ups, (out // num_parts, rank))
    wanted |= {low_rank.down: (num_parts * rank, inner), low_rank.alpha: ()}
    for key, shape in wanted.items():
        if shapes[key] != shape:
            raise LoraError(path, f"{key} has shape {list(shapes[key])}, not {list(shape)}")
