"""Compute fingerprints of the parts of a checkpoint, so that two checkpoints can be told apart.

A fingerprint covers the name, type and shape of every tensor, and three blocks of its bytes: the first, the
middle and the last `BLOCK_BYTES`. Reading all of a large checkpoint would take minutes at each start. So two
checkpoints of which all tensors were trained differ for certain; a change of a few values inside one large
tensor may go unnoticed. The small files of a part, such as its configuration, are covered completely. The
division of tensors into files does not matter.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from model.io.lora_files import lora_files
from model.spec.errors import CheckpointError

BLOCK_BYTES = 4096
DIGEST_CHARACTERS = 16
_LARGEST_HEADER_BYTES = 100_000_000  # as in safetensors itself
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)
"""What reading a broken file raises."""
_PARTS = {
    "transformer": ("dit",),
    "text_encoder": ("text_encoder", "tokenizer"),
    "vae": ("vae",),
    "scheduler": ("scheduler",),
}
_INDEX = ".safetensors.index.json"  # names the files of the tensors


def fingerprints(checkpoint: Path) -> dict[str, str]:
    """Return the fingerprint of each part of a checkpoint: four parts, and each LoRA by its name.

    Raises CheckpointError if a file cannot be read.
    """
    found = {
        part: _fingerprint([path for folder in folders for path in _files_in(checkpoint / folder)])
        for part, folders in _PARTS.items()
    }
    return found | {name: _fingerprint([path]) for name, path in lora_files(checkpoint).items()}


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(_INDEX))


def _fingerprint(files: list[Path]) -> str:
    entries: list[bytes] = []
    for path in files:
        try:
            if path.suffix == ".safetensors":
                entries += _tensor_entries(path)
            else:
                entries.append(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        except _BROKEN as error:
            raise CheckpointError(path, f"cannot be read: {error}") from error
    return hashlib.sha256(b"\n".join(sorted(entries))).hexdigest()[:DIGEST_CHARACTERS]


def _tensor_entries(path: Path) -> Iterator[bytes]:
    """Yield name, type, shape and a digest of sampled bytes for each tensor of a safetensors file."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > _LARGEST_HEADER_BYTES:
            raise ValueError("the header is too large")
        header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            middle, last = (begin + end) // 2, max(begin, end - BLOCK_BYTES)
            digest = hashlib.sha256()
            for offset in (begin, middle, last):
                file.seek(8 + header_bytes + offset)
                digest.update(file.read(min(BLOCK_BYTES, end - offset)))
            yield f"{name} {tensor['dtype']} {tensor['shape']} {digest.hexdigest()}".encode()
