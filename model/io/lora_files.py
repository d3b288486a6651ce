"""Find the LoRA files of a checkpoint, and name the modules in them, without torch."""

from pathlib import Path

SEPARATOR = "___lorahyphen___"  # replaces the dots of a module path
PREFIX = "lora" + SEPARATOR


def lora_files(checkpoint: Path) -> dict[str, Path]:
    """Return the LoRA files of a checkpoint by name, in the order of their paths."""
    return {path.stem: path for path in sorted((checkpoint / "lora").glob("*.safetensors"))}


def split_key(key: str) -> tuple[str, str]:
    """Split a key into the path of the module and the name of the tensor, which has dots of its own."""
    module, _, tensor = key.removeprefix(PREFIX).partition(".")
    return module.replace(SEPARATOR, "."), tensor
