"""Check out the last release from the history of the repository, beside the working tree."""

from __future__ import annotations

import re
import subprocess
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[2]
_RECORDED = re.compile(r"^## (\d+\.\d+\.\d+) - .*?commit `([0-9a-f]{40})`", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Release:
    """The code of a release, in a folder."""

    name: str
    folder: Path


class NoHistory(Exception):
    """The repository does not contain the commit, as in a shallow clone."""


WORKING_TREE = Release("working tree", ROOT)


def recorded_release() -> tuple[str, str]:
    """Return version and commit of the last release, as the changelog records them."""
    found = _RECORDED.search((ROOT / "CHANGELOG.md").read_text())
    assert found, "CHANGELOG.md records no release with its commit"
    return found[1], found[2]


def check_out(commit: str, name: str, folder: Path) -> Release:
    """Write the files of a commit to `folder`. Raises NoHistory."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        raise NoHistory(f"commit {commit} is not in this repository: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return Release(name, folder)
