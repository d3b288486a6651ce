"""Build what is missing, run a Kubernetes of one node, and try the chart on it. Exit with 1 if a check fails.

Kubernetes and the layers of images are kept in a cache, so that only the first run builds them. Everything
else is in a temporary folder. Kubernetes runs in namespaces of its own: no other process of this machine sees
its processes, mounts and network, and they end with this program, however it ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from stack.die_with_parent import dies_with_parent
from tests.cluster.programs import build_kubernetes, require_programs
from tests.images.__main__ import default_cache, pip_find_links
from tests.images.bases import REDIS, SOURCES, Source, prepare_bases, registry_answers
from tests.images.build import CPU_TORCH, build_images, tag_of
from tests.images.engine import open_engine
from tests.images.engine import require_programs as require_image_programs

if TYPE_CHECKING:
    from tests.cluster.node import Node

logger = logging.getLogger(__name__)

BINARIES, IMAGES = "bin", "images"
IMPORTED = "imported.json"
PAUSE = Path(__file__).with_name("pause.Dockerfile")
NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--propagation=private")


def main() -> int:
    """Run the program and print its report."""
    options = parse_options()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that everything below is removed
    cluster: Path = options.cluster.resolve()
    if options.inside:
        return try_chart(cluster, options.inside, options.out, options.minutes, options.seed)
    source: Source = options.bases or ("registry" if registry_answers() else "debian")
    require_programs(cluster / BINARIES)
    require_image_programs(source)
    with tempfile.TemporaryDirectory(prefix="longcat-cluster-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # kubelet's volumes are below
        (folder / "build").mkdir()
        build_kubernetes(cluster / BINARIES, folder / "build")
        save_images(options.cache.resolve(), source, cluster / IMAGES, folder)
        inside = [*NAMESPACES, "--kill-child", sys.executable, "-m", "tests.cluster", "--inside", str(folder)]
        own = ("--cluster", str(cluster), "--out", str(options.out))
        chosen = ("--minutes", str(options.minutes), "--seed", str(options.seed))
        with subprocess.Popen(dies_with_parent([*inside, *own, *chosen])) as process:
            try:
                return process.wait()
            finally:
                process.kill()


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long pods are deleted at random")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000, help="of what is deleted")
    parser.add_argument("--bases", choices=SOURCES, help="the base images: see python -m tests.images --help")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where layers are kept")
    parser.add_argument(
        "--cluster",
        type=Path,
        default=default_cache().with_name("kubernetes"),
        help="where the programs of Kubernetes and the images of its node are kept",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/cluster"), help="where report and logs are written"
    )
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def save_images(cache: Path, source: Source, kept: Path, folder: Path) -> None:
    """Build the images, and save those as files in `folder` that are not among the images of the node yet."""
    with ExitStack() as parts:
        engine = parts.enter_context(
            open_engine(cache, Path(parts.enter_context(tempfile.TemporaryDirectory())))
        )
        build_images(engine, prepare_bases(engine, source, folder), pip_find_links() or CPU_TORCH)
        engine.build(PAUSE, "localhost/pause", PAUSE.parent, {"BASE": REDIS})
        imported = imported_images(kept)
        for tag in image_names().values():
            image_id = engine.podman("image", "inspect", "--format", "{{.Id}}", tag).strip()
            if imported.get(tag) != image_id:
                logger.info("saving %s", tag)
                archive = f"docker-archive:{folder / image_id}:{with_tag(tag)}"
                engine.buildah("push", "--quiet", tag, archive)
                imported[tag] = image_id
        (folder / IMPORTED).write_text(json.dumps(imported))


def imported_images(kept: Path) -> dict[str, str]:
    """Return the ids of the images that the node has, by name."""
    file = kept / IMPORTED
    found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return found


def import_images(node: Node, kept: Path, folder: Path) -> None:
    """Load the images that were saved."""
    for image_id in json.loads((folder / IMPORTED).read_text()).values():
        if (archive := folder / image_id).exists():
            logger.info("importing an image of %d MB", archive.stat().st_size / 1e6)
            node.import_image(archive)
            archive.unlink()
    shutil.copy(folder / IMPORTED, kept)


def image_names() -> dict[str, str]:
    """Return the names of all images that pods have."""
    return {"api": tag_of("api"), "worker": tag_of("worker"), "redis": REDIS, "pause": "localhost/pause"}


def with_tag(name: str) -> str:
    """Return the name with its tag."""
    return name if ":" in name else f"{name}:latest"


def try_chart(cluster: Path, folder: Path, out: Path, minutes: float, seed: int) -> int:
    """Run the node and all trials in the namespaces of this process."""
    # Helm's library starts threads, which have to be in these namespaces
    from tests.cluster.node import run_node, save_logs
    from tests.cluster.release import new_release
    from tests.cluster.trials import Trials

    started_at = time.monotonic()
    binaries, kept = cluster / BINARIES, cluster / IMAGES
    kept.mkdir(parents=True, exist_ok=True)
    with run_node(binaries, kept, folder) as node:
        import_images(node, kept, folder)
        release = new_release(node, image_names())
        trials = Trials(release)
        trials.report["seed"] = seed
        try:
            release.install()
            trials.generate()
            trials.update()
            trials.drain()
            trials.delete_pods(minutes, seed)
            trials.scale()
            trials.expect_every_video()
            release.uninstall()
        except BaseException:
            logger.exception("failed; logs are in %s", out)
            save_logs(node, out)
            raise
    trials.report["seconds"] = round(time.monotonic() - started_at)
    text = json.dumps(trials.report, indent=2)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
