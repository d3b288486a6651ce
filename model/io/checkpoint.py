"""Load weights from safetensors files into modules, tensor by tensor, in the dtype of the module.

A module is built on the meta device, so no weight is allocated twice. Shards are read in parallel, each by a
thread that holds one tensor in the dtype of the file at a time. Missing and extra tensors are errors.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.io.json_file import read_index
from model.spec.errors import CheckpointError

Built = TypeVar("Built", bound=nn.Module)
Converted = TypeVar("Converted")
NUM_READERS = 8  # files that are read in parallel


@runtime_checkable
class TensorSlice(Protocol):
    """A tensor of a file, not read yet."""

    def get_shape(self) -> list[int]:
        """Return the shape."""
        ...


@runtime_checkable
class TensorFile(Protocol):
    """The interface of safetensors' `safe_open`."""

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        ...

    def metadata(self) -> dict[str, str] | None:
        """Return the metadata of the file."""
        ...

    def get_slice(self, name: str) -> TensorSlice:
        """Return a tensor without reading it."""
        ...

    def get_tensor(self, name: str) -> Tensor:
        """Read a tensor."""
        ...


Convert = Callable[[str, Tensor], Tensor | nn.Linear]
"""Returns a tensor in another form, given its name: as a tensor, or as the layer whose weight it is."""


def load_module(
    build: Callable[[], Built], weights: "Weights", device: torch.device, convert: Convert | None = None
) -> Built:
    """Build a module on the meta device and load its weights. No parameter requires gradients.

    With `convert`, each tensor is converted as soon as it is on the device.

    Raises CheckpointError for a missing or extra tensor, a wrong shape, or a file that cannot be read.
    """
    with torch.device("meta"):
        module = build()
    wanted = module.state_dict(keep_vars=True)
    weights.check_names(wanted)
    load_tensors(module, wanted, weights, device, convert)
    return module.eval()


def load_tensors(
    module: nn.Module,
    wanted: Mapping[str, Tensor],
    weights: "Weights",
    device: torch.device,
    convert: Convert | None = None,
) -> None:
    """Replace some tensors of a module on the meta device by those of the files. See `load_module`."""
    tied: dict[Tensor, nn.Parameter | nn.Linear] = {}
    for name, loaded in weights.read_all(wanted, device, convert or _unchanged):
        if isinstance(loaded, Tensor):
            tied[wanted[name]] = nn.Parameter(loaded, requires_grad=False)
        else:
            tied[wanted[name]] = loaded
    for name, parameter in wanted.items():
        value = tied[parameter]
        _assign(module, name.removesuffix(".weight") if isinstance(value, nn.Linear) else name, value)


def _unchanged(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor: the `Convert` that converts nothing."""
    return tensor


def _assign(module: nn.Module, name: str, value: nn.Parameter | nn.Linear) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, value)


class Weights:
    """The tensors of one folder: a single safetensors file, or shards with an index."""

    def __init__(self, folder: Path, stem: str) -> None:
        """Find `{stem}.safetensors` or `{stem}.safetensors.index.json`. Raises CheckpointError."""
        if not folder.is_dir():
            raise CheckpointError(folder, "is missing, or is not a folder")
        self.folder = folder
        self.files: Mapping[str, Path] = self._files(folder / f"{stem}.safetensors")

    def _files(self, single: Path) -> dict[str, Path]:
        index = single.with_name(f"{single.name}.index.json")
        if not index.exists():
            return dict.fromkeys(tensor_names(single), single)
        shard_of = read_index(index)
        found = {name: shard for shard in sorted(set(shard_of.values())) for name in tensor_names(shard)}
        for name, shard in shard_of.items():
            if found.get(name) != shard:
                raise CheckpointError(shard, f"has no tensor {name}, which the index puts there")
        return found

    def check_names(self, wanted: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless the names are those of a module. Of tied tensors one is enough."""
        if extra := sorted(set(self.files) - set(wanted)):
            raise CheckpointError(self.files[extra[0]], f"has an extra tensor {extra[0]}{_and_others(extra)}")
        present = {wanted[name] for name in self.files}
        if missing := sorted(name for name, tensor in wanted.items() if tensor not in present):
            raise CheckpointError(self._likely_file(), f"has no tensor {missing[0]}{_and_others(missing)}")

    def read(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        """Read a tensor to the device, in the shape and dtype of `like`. Raises CheckpointError."""
        (tensor,) = _read(self.files[name], {name: like}, device, _unchanged).values()
        return tensor

    def read_all(
        self, wanted: Mapping[str, Tensor], device: torch.device, convert: Callable[[str, Tensor], Converted]
    ) -> Iterator[tuple[str, Converted]]:
        """Read all wanted tensors that the files have, several files in parallel, and yield them converted.

        Tensors are converted by the thread that reads the file. Raises CheckpointError.
        """
        by_file: dict[Path, dict[str, Tensor]] = defaultdict(dict)
        for name, path in self.files.items():
            if name in wanted:
                by_file[path][name] = wanted[name]

        def read(file: tuple[Path, dict[str, Tensor]]) -> dict[str, Converted]:
            return _read(*file, device, convert)

        with ThreadPoolExecutor(NUM_READERS) as readers:
            for tensors in readers.map(read, by_file.items()):
                yield from tensors.items()

    def _likely_file(self) -> Path:
        files = set(self.files.values())
        return files.pop() if len(files) == 1 else self.folder


def _read(
    path: Path,
    wanted: Mapping[str, Tensor],
    device: torch.device,
    convert: Callable[[str, Tensor], Converted],
) -> dict[str, Converted]:
    """Read the tensors of one file, converting each to its dtype and form when it is on the device.

    On the meta device, check the shapes and read nothing.
    """
    is_read = device.type != "meta"
    tensors: dict[str, Converted] = {}
    with open_safetensors(path, device if is_read else "cpu") as file:
        for name, like in wanted.items():
            shape = file.get_slice(name).get_shape()
            if tuple(shape) != tuple(like.shape):
                raise CheckpointError(path, f"{name} has shape {list(shape)}, not {list(like.shape)}")
            tensor = file.get_tensor(name) if is_read else like
            tensors[name] = convert(name, tensor.to(like.dtype))
    return tensors


def _and_others(names: list[str]) -> str:
    return f" (and {len(names) - 1} others)" if len(names) > 1 else ""


def tensor_names(path: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file. Raises CheckpointError."""
    with open_safetensors(path) as file:
        return list(file.keys())


@contextmanager
def open_safetensors(path: Path, device: torch.device | str = "cpu") -> Iterator[TensorFile]:
    """Map a safetensors file into memory. Raises CheckpointError if it is missing, truncated or corrupt."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield cast(TensorFile, file)
    except FileNotFoundError:
        raise CheckpointError(path, "is missing") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(path, f"is not a whole safetensors file: {error}") from error
