"""Build both images, then check them. Exit with 1 if a check fails.

`check` runs each image alone with as few rights as possible, and writes sizes and SBOMs. `compose` starts
docker-compose.yml and generates videos through it.

Layers and base images are kept in a cache, so that a second run takes a minute. Everything else is in a
temporary folder, and every container is removed at the end.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.images.bases import SOURCES, Source, prepare_bases, registry_answers
from tests.images.build import CPU_TORCH, build_images, size_of
from tests.images.compose import check_compose, find_compose
from tests.images.engine import enter_own_network, open_engine, require_programs
from tests.images.hardened import check_images
from tests.images.sbom import write_sbom

IMAGES = ("api", "worker")


def main() -> int:
    """Run the program and print its report."""
    parser = argparse.ArgumentParser(prog="python -m tests.images", description=__doc__)
    parser.add_argument("check", choices=("check", "compose"))
    parser.add_argument(
        "--bases",
        choices=SOURCES,
        help="registry: the base images that the Dockerfiles name; debian: stand-ins made from Debian's "
        "packages (default: registry if Docker Hub answers)",
    )
    parser.add_argument(
        "--find-links",
        default=pip_find_links() or CPU_TORCH,
        help="folder or page where pip finds a torch without CUDA (default: where pip's own settings say, or "
        "pytorch.org)",
    )
    parser.add_argument("--compressed", action="store_true", help="measure compressed sizes, too: minutes")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where layers are kept")
    parser.add_argument(
        "--out", type=Path, default=Path("out/images"), help="where report and SBOMs are written"
    )
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that everything below is removed
    started_at = time.monotonic()
    source: Source = options.bases or ("registry" if registry_answers() else "debian")
    require_programs(source)
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="longcat-images-")))
        engine = parts.enter_context(open_engine(options.cache.resolve(), folder))
        build_images(engine, prepare_bases(engine, source, folder), options.find_links)
        if options.check == "compose":
            program = find_compose(options.cache.resolve(), folder)
            enter_own_network()
            report = check_compose(engine, program, folder)
        else:
            options.out.mkdir(parents=True, exist_ok=True)
            report = {name: size_of(engine, name, options.compressed, folder) for name in IMAGES}
            for name in IMAGES:
                report[name]["packages"] = write_sbom(engine, name, options.out / f"{name}.cdx.json")
            enter_own_network()
            check_images(engine)
    report["bases"] = source
    report["seconds"] = round(time.monotonic() - started_at)
    text = json.dumps(report, indent=2)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.check}.json").write_text(text + "\n")
    print(text)
    return 0


def pip_find_links() -> str | None:
    """Return the folder or page of packages in pip's settings: its configuration files or PIP_FIND_LINKS."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    settings = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    found = settings.get(":env:.find-links") or settings.get("global.find-links") or "''"
    return next(iter(ast.literal_eval(found).split()), None)


def default_cache() -> Path:
    """Return a folder of the user, so that all checkouts share the layers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longcat-video" / "images"


if __name__ == "__main__":
    sys.exit(main())
