"""Run podman and buildah with a storage and settings of their own, apart from those of this machine."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
CLONE_NEWNET = 0x40000000  # linux/sched.h
PROGRAMS = {
    "buildah": "buildah",
    "ip": "iproute2",
    "iptables": "iptables",
    "podman": "podman",
    "runc": "runc",
}
"""The programs that are needed, with the Debian package of each."""
NETWORK_PROGRAMS = {"aardvark-dns": "aardvark-dns", "netavark": "netavark"}
"""The same for programs that podman starts."""
NETWORK_FOLDERS = ("/usr/lib/podman", "/usr/libexec/podman", "/usr/local/libexec/podman")


@dataclass(frozen=True)
class Engine:
    """podman and buildah. Both raise CalledProcessError, and their output is in the log."""

    environment: Mapping[str, str]

    def podman(self, *arguments: str) -> str:
        """Run podman and return its standard output."""
        return self._run("podman", *arguments)

    def buildah(self, *arguments: str) -> str:
        """Run buildah and return its standard output."""
        return self._run("buildah", *arguments)

    def build(
        self,
        dockerfile: Path,
        tag: str,
        context: Path,
        arguments: Mapping[str, str] | None = None,
        folders: Sequence[Path] = (),
    ) -> None:
        """Build an image.

        Args:
            dockerfile: The file with the instructions.
            tag: The name of the image.
            context: The folder from which files are copied.
            arguments: The build arguments.
            folders: Folders of this machine that instructions can read, at the same path.
        """
        logger.info("building %s", tag)
        self._run(
            *("buildah", "build", "--layers", "--isolation", "chroot", "--network", "host"),
            *("--format", "docker"),  # OCI's format has no health check
            *(f"--build-arg={name}={value}" for name, value in (arguments or {}).items()),
            *(f"--volume={folder}:{folder}:ro" for folder in folders),
            *("--tag", tag, "--file", str(dockerfile), str(context)),
        )

    def has_image(self, tag: str) -> bool:
        """Check that there is an image with this name."""
        command = ["podman", "image", "exists", tag]
        return subprocess.run(command, check=False, env=dict(self.environment)).returncode == 0

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, check=False, env=dict(self.environment), capture_output=True, text=True
        )
        if done.returncode:
            logger.error("%s\n%s%s", " ".join(command), done.stdout[-20_000:], done.stderr[-20_000:])
            done.check_returncode()
        return done.stdout


@contextmanager
def open_engine(cache: Path, folder: Path) -> Iterator[Engine]:
    """Yield an engine whose images are in `cache`, and everything else in `folder`.

    Exits if another process uses the cache.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another process uses {cache}")
        (folder / "storage.conf").write_text(
            "[storage]\n"
            'driver = "overlay"\n'
            f'graphroot = "{cache / "storage"}"\n'
            f'runroot = "{folder / "storage"}"\n'
        )
        # With runc, cgroupfs and lower limits, containers start without systemd and where root lacks
        # capabilities. The database is in `folder`, so no container of an earlier run is in it.
        (folder / "containers.conf").write_text(
            "[containers]\n"
            'default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]\n'
            "[engine]\n"
            'runtime = "runc"\n'
            'cgroup_manager = "cgroupfs"\n'
            'events_logger = "file"\n'
            f'static_dir = "{folder / "libpod"}"\n'
            f'volume_path = "{folder / "volumes"}"\n'
            f'tmp_dir = "{folder / "tmp"}"\n'
            "[network]\n"
            'network_backend = "netavark"\n'
            f'network_config_dir = "{folder / "networks"}"\n'
        )
        own = {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }
        engine = Engine({**os.environ, **own})
        engine.buildah("rm", "--all")  # of a build that was killed
        try:
            yield engine
        finally:  # podman's service leaves this mount, which `rm` could not remove
            subprocess.run(["umount", "--quiet", str(cache / "storage" / "overlay")], check=False)


def require_programs(source: str) -> None:
    """Exit with a message if this process is not root, or a program is missing."""
    if os.geteuid() != 0:
        sys.exit("root is needed to run containers")
    wanted = PROGRAMS | ({"mmdebstrap": "mmdebstrap"} if source == "debian" else {})
    missing = {package for program, package in wanted.items() if not shutil.which(program)}
    search = os.pathsep.join(NETWORK_FOLDERS)
    missing |= {
        package for program, package in NETWORK_PROGRAMS.items() if not shutil.which(program, path=search)
    }
    if missing:
        sys.exit(
            "missing; install with: apt-get install --no-install-recommends " + " ".join(sorted(missing))
        )


def enter_own_network() -> None:
    """Move this thread and its children to a network namespace of their own, which has only loopback.

    Nothing else can reach the containers, and their ports are always free. The namespace ends with its
    processes.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET) failed")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
