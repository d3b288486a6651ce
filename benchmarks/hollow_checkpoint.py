"""Write a checkpoint of full size whose tensors take no space, and load it on the meta device.

Names and shapes are those of the release, with all tensors in fp32. The files have holes where the tensors
are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks.peak_memory import META, SHIFT, UMT5_XXL
from model.io import checkpoint as checkpoint_io
from model.tiny import LORAS, config_document, lora_tensors, write_json, write_tokenizer
from model.transformer.config import DitConfig
from model.transformer.dit import Dit

LORA_RANK = 128
ELEMENT_BYTES = 4


def write_hollow(folder: Path, depth: int = DitConfig.depth) -> None:
    """Write the checkpoint, with a transformer of so many blocks."""
    config = DitConfig(depth=depth)
    wan: Any = AutoencoderKLWan
    with META:
        wan_vae = wan.from_config({})
        dit, text_encoder = Dit(config, torch.float32), UMT5EncoderModel(UMT5Config(**UMT5_XXL))
        loras = {name: lora_tensors(dit, wanted, LORA_RANK) for name, wanted in LORAS.items()}
    write_tokenizer(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", {"shift": SHIFT})
    write_json(folder / "dit" / "config.json", config_document(config))
    _write_hole(folder / "dit" / "diffusion_pytorch_model.safetensors", dit.state_dict())
    text_encoder.config.save_pretrained(folder / "text_encoder")
    _write_hole(folder / "text_encoder" / "model.safetensors", dict(text_encoder.named_parameters()))
    wan_vae.save_config(folder / "vae")
    _write_hole(folder / "vae" / "diffusion_pytorch_model.safetensors", wan_vae.state_dict())
    for name, tensors in loras.items():
        _write_hole(folder / "lora" / f"{name}.safetensors", tensors)


def _write_hole(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file with a hole in place of the content of its tensors."""
    header, stop = {}, 0
    for name, tensor in tensors.items():
        start, stop = stop, stop + ELEMENT_BYTES * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, stop]}
    encoded = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(file.tell() + stop)


@contextmanager
def loading_on_meta() -> Iterator[None]:
    """Read files onto the meta device, all in this thread, whose modes see it."""
    with (
        patch.object(checkpoint_io, "safe_open", _open),
        patch.object(checkpoint_io, "ThreadPoolExecutor", _ThisThread),
    ):
        yield


class _MetaFile:
    """An open file whose tensors are read onto the meta device."""

    def __init__(self, file: safe_open) -> None:
        self._file = file
        self.keys, self.metadata, self.get_slice = file.keys, file.metadata, file.get_slice

    def get_tensor(self, name: str) -> Tensor:
        return torch.empty(self._file.get_slice(name).get_shape(), device=META)


@contextmanager
def _open(path: Path, **_: object) -> Iterator[_MetaFile]:
    with safe_open(path, framework="numpy") as file:  # torch would map the file to memory that it may write
        yield _MetaFile(file)


class _ThisThread:
    """A ThreadPoolExecutor that has no threads."""

    def __init__(self, num_threads: int) -> None:
        self.map = map

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
