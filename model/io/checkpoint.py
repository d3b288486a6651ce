"""Weights from safetensors files into modules, tensor by tensor, straight to the device and dtype.

`model.pipeline` loads the transformer, the text encoder and the VAE with it. A module is built on the
meta device, so nothing is allocated twice; shards are read side by side, each by a thread that holds one
tensor in the file's dtype at a time. Every tensor must be there, and none besides; an error names the file
and the tensor. It does not know what the tensors are for.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.spec.errors import CheckpointError
from model.transformer.config import load_json

Built = TypeVar("Built", bound=nn.Module)
READERS = 8  # files read at the same time


@runtime_checkable
class TensorSlice(Protocol):
    """A tensor that is not read yet."""

    def get_shape(self) -> list[int]:
        """Its shape."""
        ...


@runtime_checkable
class TensorFile(Protocol):
    """What safetensors' `safe_open` gives."""

    def keys(self) -> list[str]:
        """Names of the tensors."""
        ...

    def metadata(self) -> dict[str, str] | None:
        """What was written beside the tensors."""
        ...

    def get_slice(self, name: str) -> TensorSlice:
        """One tensor, not read yet."""
        ...

    def get_tensor(self, name: str) -> Tensor:
        """One tensor, read."""
        ...


def load_module(build: Callable[[], Built], weights: "Weights", device: torch.device) -> Built:
    """Build a module on the meta device and give it its weights, each in the dtype that the module wants.

    No parameter asks for gradients, so nothing that uses the module builds a graph.

    Raises CheckpointError for a missing, extra or mis-shaped tensor, or a file that cannot be read.
    """
    with torch.device("meta"):
        module = build()
    wanted = module.state_dict(keep_vars=True)
    weights.check_names(wanted)
    tied: dict[Tensor, nn.Parameter] = {}
    for name, tensor in weights.read_all(wanted, device):
        tied[wanted[name]] = nn.Parameter(tensor, requires_grad=False)
    for name, parameter in wanted.items():
        _assign(module, name, tied[parameter])
    return module.eval()


def _assign(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, parameter)


class Weights:
    """The tensors of one folder: a single safetensors file, or shards with an index."""

    def __init__(self, folder: Path, stem: str) -> None:
        """Find the files `{stem}.safetensors` or `{stem}.safetensors.index.json`. Raises CheckpointError."""
        if not folder.is_dir():
            raise CheckpointError(folder, "is missing, or is no folder")
        self.folder = folder
        self.files: Mapping[str, Path] = self._files(folder / f"{stem}.safetensors")

    def _files(self, single: Path) -> dict[str, Path]:
        index = single.with_name(f"{single.name}.index.json")
        if not index.exists():
            return dict.fromkeys(names_in(single), single)
        weight_map = load_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(index, "has no weight_map")
        shards = {self.folder / shard for shard in weight_map.values()}
        found = {name: shard for shard in sorted(shards) for name in names_in(shard)}
        for name, shard in weight_map.items():
            if found.get(name) != self.folder / shard:
                raise CheckpointError(
                    self.folder / shard, f"has no tensor {name}, which the index puts there"
                )
        return found

    def check_names(self, wanted: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless these are what a module wants; of tied tensors, one is enough."""
        if extra := sorted(set(self.files) - set(wanted)):
            raise CheckpointError(self.files[extra[0]], f"has an extra tensor {extra[0]}{_and_others(extra)}")
        present = {wanted[name] for name in self.files}
        if missing := sorted(name for name, tensor in wanted.items() if tensor not in present):
            raise CheckpointError(self._likely_file(), f"has no tensor {missing[0]}{_and_others(missing)}")

    def read(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        """One tensor on the device, in the shape and dtype of `like`. Raises CheckpointError."""
        (tensor,) = _read(self.files[name], {name: like}, device).values()
        return tensor

    def read_all(self, wanted: Mapping[str, Tensor], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """The same of every tensor, several files at a time. Raises CheckpointError."""
        theirs: dict[Path, dict[str, Tensor]] = defaultdict(dict)
        for name, path in self.files.items():
            theirs[path][name] = wanted[name]
        with ThreadPoolExecutor(READERS) as readers:
            for tensors in readers.map(partial(_read, device=device), theirs.keys(), theirs.values()):
                yield from tensors.items()

    def _likely_file(self) -> Path:
        files = set(self.files.values())
        return files.pop() if len(files) == 1 else self.folder


def _read(path: Path, wanted: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors of one file, each in the dtype that is wanted as soon as it is on the device."""
    tensors = {}
    with opened(path, device) as file:
        for name, like in wanted.items():
            shape = file.get_slice(name).get_shape()
            if tuple(shape) != tuple(like.shape):
                raise CheckpointError(path, f"{name} has shape {list(shape)}, not {list(like.shape)}")
            tensors[name] = file.get_tensor(name).to(like.dtype)
    return tensors


def _and_others(names: list[str]) -> str:
    return f" (and {len(names) - 1} others)" if len(names) > 1 else ""


def names_in(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file. Raises CheckpointError."""
    with opened(path) as file:
        return list(file.keys())


@contextmanager
def opened(path: Path, device: torch.device | str = "cpu") -> Iterator[TensorFile]:
    """A safetensors file, mapped into memory. Raises CheckpointError if missing, cut short or corrupt."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield cast(TensorFile, file)
    except FileNotFoundError:
        raise CheckpointError(path, "is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"is not a whole safetensors file: {error}") from error
