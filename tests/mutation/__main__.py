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

from tests.mutation.lua import lua_mutants

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """A part of the code, and the tests that have to notice its mutants."""

    only_mutate: list[str]
    tests: list[str]


TARGETS = {
    "jobs/store": Target(["jobs/store/*"], ["tests/jobs"]),
    "model/spec": Target(["model/spec/*"], ["tests/model/spec"]),
    "worker/supervisor": Target(["worker/supervisor/*"], ["tests/worker"]),
}
LUA = "jobs/store/scripts"

CONFIG = """
[tool.mutmut]
source_paths = {packages}
only_mutate = {only_mutate}
also_copy = {also_copy}
pytest_add_cli_args = ["--import-mode=importlib", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
"""


def main() -> None:
    """Mutate the named target and print what survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("target", choices=[*sorted(TARGETS), LUA])
    target = parser.parse_args().target
    folder = Path(tempfile.mkdtemp(prefix="mutation-"))
    copy_tracked_files(folder)
    print(f"mutating {target} in {folder}", flush=True)
    if target == LUA:
        mutate_scripts(folder, folder / LUA, TARGETS["jobs/store"].tests)
    else:
        mutate_python(folder, TARGETS[target])


def mutate_python(folder: Path, target: Target) -> None:
    """Run mutmut in the copy."""
    configure(folder, target)
    run(folder, "run", "--max-children", str(os.cpu_count()))
    results = run(folder, "results", capture=True)
    print(results)
    for survivor in survivors(results):
        print(run(folder, "show", survivor, capture=True))


def mutate_scripts(folder: Path, scripts: Path, tests: list[str]) -> None:
    """Run the tests on one mutant of a script after the other; mutmut knows Python only."""
    command = [sys.executable, "-m", "pytest", "-x", "--quiet", "-p", "no:cacheprovider", *tests]
    num_mutants = num_survivors = 0
    for path in sorted(scripts.glob("*.lua")):
        original = path.read_text()
        for mutant in lua_mutants(original):
            path.write_text(mutant.text)
            done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
            num_mutants += 1
            if done.returncode == 0:
                num_survivors += 1
                print(f"{path.name}:{mutant.line}: {mutant.change}", flush=True)
        path.write_text(original)
    print(f"{num_survivors} of {num_mutants} mutants survived")


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
