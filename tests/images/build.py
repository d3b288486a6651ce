"""Build the images of the API and the worker, and measure them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.images.bases import Bases
from tests.images.engine import ROOT, Engine

CPU_TORCH = "https://download.pytorch.org/whl/cpu/torch/"


def build_images(engine: Engine, bases: Bases, find_links: str) -> None:
    """Build both images from the working tree.

    The worker gets a torch without CUDA, found at `find_links`, a folder or a page. The checks need no GPU,
    and CUDA's libraries take gigabytes.
    """
    revision = _revision()
    wheels = [Path(find_links)] if Path(find_links).is_dir() else []
    for name, base, own in (("api", bases.api, {}), ("worker", bases.worker, {"PIP_FIND_LINKS": find_links})):
        arguments = {"REVISION": revision, **own, **({"BASE": base} if base else {})}
        engine.build(
            ROOT / "docker" / f"{name}.Dockerfile", tag_of(name), ROOT, arguments, wheels if own else []
        )
    engine.podman("image", "prune", "--force")  # earlier builds; layers of the present ones stay


def tag_of(name: str) -> str:
    """Return the name of the image, as docker-compose.yml has it."""
    return f"localhost/longcat-video-{name}"


def size_of(engine: Engine, name: str, compressed: bool, folder: Path) -> dict[str, Any]:
    """Return the size of an image in MB: unpacked, and as a registry keeps it if `compressed`."""
    size_bytes = int(engine.podman("image", "inspect", "--format", "{{.Size}}", tag_of(name)))
    size = {"unpacked_mb": round(size_bytes / 1e6)}
    if compressed:
        pushed = folder / f"{name}.pushed"
        engine.buildah("push", "--quiet", tag_of(name), f"oci:{pushed}")
        size["compressed_mb"] = round(sum(path.stat().st_size for path in pushed.rglob("*")) / 1e6)
    return size


def inspect(engine: Engine, name: str) -> dict[str, Any]:
    """Return the configuration of an image."""
    config: dict[str, Any] = json.loads(engine.podman("image", "inspect", tag_of(name)))[0]["Config"]
    return config


def _revision() -> str:
    """Return the commit of the working tree, with `-dirty` if files were changed; empty without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
