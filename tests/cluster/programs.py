"""Find the programs of a node: Debian has packages of most, and Kubernetes is built from its source."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

PACKAGES = {
    "conntrack": "conntrack",
    "containerd": "containerd",
    "dnsmasq": "dnsmasq-base",
    "etcd": "etcd-server",
    "ip": "iproute2",
    "iptables": "iptables",
    "kubectl": "kubernetes-client",
    "openssl": "openssl",
    "runc": "runc",
    "unshare": "util-linux",
}
"""The programs that run a node, with the Debian package of each."""
CNI_FOLDER = Path("/usr/lib/cni")
BUILD_PACKAGES = {"dpkg-source": "dpkg-dev", "go": "golang-go", "make": "make", "rsync": "rsync"}
BUILT = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
SOURCE_PACKAGE = "kubernetes"
SUITES = (
    "http://deb.debian.org/debian bookworm main",
    "http://deb.debian.org/debian-security bookworm-security main",
)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def require_programs(binaries: Path) -> None:
    """Exit with a message if a program is missing to run a node, or to build what is not in `binaries`."""
    wanted = PACKAGES if is_built(binaries) else PACKAGES | BUILD_PACKAGES
    missing = {package for program, package in wanted.items() if not shutil.which(program)}
    if not (CNI_FOLDER / "ptp").exists():
        missing.add("containernetworking-plugins")
    if missing:
        sys.exit(
            "missing; install with: apt-get install --no-install-recommends " + " ".join(sorted(missing))
        )


def is_built(binaries: Path) -> bool:
    """Return whether the folder has all programs of Kubernetes."""
    return all((binaries / name).exists() for name in BUILT)


def build_kubernetes(binaries: Path, folder: Path) -> None:
    """Build Kubernetes from Debian's source package into `binaries`, unless it is there.

    It takes 13 minutes on two idle cores.

    Raises:
        CalledProcessError: apt-get or make failed.
    """
    if is_built(binaries):
        return
    logger.info("building Kubernetes, which takes a quarter of an hour or more")
    source = _unpack_source(folder)
    version = source.name.removeprefix("kubernetes-").split("really")[-1]
    major, minor, _ = version.split(".")
    names = {"COMMIT": "debian", "TREE_STATE": "archive", "VERSION": f"v{version}"}
    names |= {"MAJOR": major, "MINOR": minor}
    version_file = folder / "version"
    version_file.write_text("".join(f"KUBE_GIT_{name}='{value}'\n" for name, value in names.items()))
    own = {"CGO_ENABLED": "0", "GOPROXY": "off", "KUBE_GIT_VERSION_FILE": str(version_file)}
    what = " ".join(f"cmd/{name}" for name in BUILT)
    flags = "-mod=vendor -tags=providerless,dockerless"  # less code that is not needed here
    make = ["make", f"WHAT={what}", f"GOFLAGS={flags}", "GOLDFLAGS=-s -w"]
    _run(make, source, {**os.environ, **own})
    binaries.mkdir(parents=True, exist_ok=True)
    for name in BUILT:
        shutil.move(source / "_output" / "bin" / name, binaries / name)


def _unpack_source(folder: Path) -> Path:
    apt = folder / "apt"
    for name in ("lists", "cache"):
        (apt / name / "partial").mkdir(parents=True)
    sources = apt / "sources.list"
    sources.write_text("".join(f"deb-src [signed-by={KEYRING}] {suite}\n" for suite in SUITES))
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "root",  # the folder is open to root only
    }
    apt_get = ["apt-get", "--quiet=2", *(f"--option={name}={value}" for name, value in options.items())]
    _run([*apt_get, "update"], folder)
    _run([*apt_get, "source", SOURCE_PACKAGE], folder)
    (found,) = (path for path in folder.glob("kubernetes-*") if path.is_dir())
    return found


def _run(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env=None if environment is None else dict(environment),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        logger.error("%s\n%s", " ".join(command), done.stdout[-20_000:])
        done.check_returncode()
