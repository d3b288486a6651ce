"""Name the modules of a LoRA file, without torch."""

SEPARATOR = "___lorahyphen___"  # replaces the dots of a module path
PREFIX = "lora" + SEPARATOR


def split_key(key: str) -> tuple[str, str]:
    """Split a key into the path of the module and the name of the tensor, which has dots of its own."""
    module, _, tensor = key.removeprefix(PREFIX).partition(".")
    return module.replace(SEPARATOR, "."), tensor
