"""Mutate one part of the code and print each mutant that no test notices, as a diff.

`python -m tests.mutation model/spec` works on a copy of the tracked files, so the checkout does not change.
The copy is kept: `mutmut results`, `mutmut show` and `mutmut browse` run there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """A part of the code, and the tests that have to notice its mutants."""

    only_mutate: list[str]
    tests: list[str]


TARGETS = {
    "model/spec": Target(["model/spec/*"], ["tests/model/spec"]),
}

CONFIG = """
[tool.mutmut]
source_paths = {packages}
only_mutate = {only_mutate}
also_copy = {also_copy}
pytest_add_cli_args = ["--import-mode=importlib", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
"""


def main() -> None:
    """Run mutmut on the named target."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mutation-"))
    copy_tracked_files(folder)
    configure(folder, TARGETS[arguments.target])
    print(f"mutating {arguments.target} in {folder}", flush=True)
    run(folder, "run", "--max-children", str(os.cpu_count()))
    print(run(folder, "results", capture=True))
    for survivor in survivors(run(folder, "results", capture=True)):
        print(run(folder, "show", survivor, capture=True))


def copy_tracked_files(folder: Path) -> None:
    """Copy every file that git knows, with its present content."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # neither deleted nor a link to a folder
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def configure(folder: Path, target: Target) -> None:
    """Append mutmut's settings to the copy's pyproject.toml."""
    copied = sorted(entry.name for entry in folder.iterdir())
    packages = sorted({pattern.partition("/")[0] for pattern in target.only_mutate})
    settings = CONFIG.format(
        packages=packages,
        only_mutate=target.only_mutate,
        also_copy=[name for name in copied if name not in packages],
        tests=target.tests,
    )
    with (folder / "pyproject.toml").open("a") as file:
        file.write(settings)


def run(folder: Path, *arguments: str, capture: bool = False) -> str:
    """Run a command of mutmut in the copy. Return its output if captured."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=True,
    )
    return done.stdout or ""


def survivors(results: str) -> list[str]:
    """Return the names of mutants that `mutmut results` reports as noticed by no test."""
    lines = (line.strip().rpartition(": ") for line in results.splitlines())
    return [name for name, _, status in lines if status in {"survived", "no tests", "timeout", "suspicious"}]


if __name__ == "__main__":
    main()
