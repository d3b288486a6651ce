"""Stage 7: write the checkpoint in the form in which the repository contains it, with fp16 weights.

`python -m training.ship CHECKPOINT FOLDER` copies only the files that a server loads. `model.io.checkpoint`
converts the weights to the precision of the job, so storing them in fp16 halves the size.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

PARTS = ("dit", "vae", "text_encoder", "tokenizer", "scheduler", "lora", "limits.json")


def main() -> None:
    """Read the command line and copy the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    ship(options.checkpoint, options.folder)


def ship(checkpoint: Path, folder: Path) -> None:
    """Copy every part of a checkpoint, with weights in fp16.

    Raises:
        FileNotFoundError: If a part is missing.
    """
    for part in PARTS:
        source = checkpoint / part
        if not source.exists():
            raise FileNotFoundError(source)
        for path in [source] if source.is_file() else sorted(source.iterdir()):
            target = folder / path.relative_to(checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            (_write_fp16 if path.suffix == ".safetensors" else shutil.copyfile)(path, target)


def _write_fp16(path: Path, target: Path) -> None:
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name).to(torch.float16) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    save_file(weights, target, metadata)


if __name__ == "__main__":
    main()
