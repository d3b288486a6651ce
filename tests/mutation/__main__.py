"""Mutate one part of the code and print each mutant that no test notices, as a diff.

`python -m tests.mutation model/spec` works on a copy of the tracked files, so the checkout does not change.
The copy is kept: `mutmut results`, `mutmut show` and `mutmut browse` run there. With `--sample 400`, only a
random sample of that size is tested, the same in every run on the same code.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.lua_runner import SEED

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """A part of the code, and the tests that have to notice its mutants."""

    only_mutate: list[str]
    tests: list[str]


TARGETS = {
    "jobs/store": Target(
        ["jobs/store/*"],
        ["tests/jobs/store", "tests/jobs/test_maintenance.py", "--ignore=tests/jobs/store/test_costs.py"],
    ),
    "model/spec": Target(["model/spec/*"], ["tests/model/spec"]),
    "worker/supervisor": Target(
        ["worker/supervisor/*"],
        ["tests/worker/supervisor", "--ignore=tests/worker/supervisor/test_supervisor_machine.py"],
    ),
}
LUA = "jobs/store/scripts"
NO_MUTANT = "none"

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
    parser.add_argument("--sample", type=int, metavar="N", help="test N mutants only; the default is all")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mutation-"))
    copy_tracked_files(folder)
    print(f"mutating {options.target} in {folder}", flush=True)
    if options.target == LUA:
        mutate_scripts(folder, options.sample)
    else:
        mutate_python(folder, TARGETS[options.target], options.sample)


def mutate_python(folder: Path, target: Target, sample: int | None) -> None:
    """Run mutmut in the copy."""
    configure(folder, target)
    names = []
    if sample:
        run(folder, "run", NO_MUTANT, check=False)  # fails after it has made all mutants
        results = run(folder, "results", "--all", "true", capture=True)
        names = sorted(name for name, _ in statuses(results))
        names = random.Random(SEED).sample(names, min(sample, len(names)))
    run(folder, "run", "--max-children", str(os.cpu_count()), *names)
    results = run(folder, "results", capture=True)
    for survivor in survivors(results):
        print(run(folder, "show", survivor, capture=True))
    print(f"{len(survivors(results))} of {len(names) or 'all'} mutants survived")


def mutate_scripts(folder: Path, sample: int | None) -> None:
    """Run `tests.mutation.lua_runner` in the copy; mutmut knows Python only."""
    size = [] if sample is None else [str(sample)]
    subprocess.run([sys.executable, "-m", "tests.mutation.lua_runner", *size], cwd=folder, check=True)


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


def run(folder: Path, *arguments: str, capture: bool = False, check: bool = True) -> str:
    """Run a command of mutmut in the copy. Return its output if captured."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=check,
    )
    return done.stdout or ""


def statuses(results: str) -> list[tuple[str, str]]:
    """Return the names of mutants and their statuses, as `mutmut results` prints them."""
    lines = (line.strip().rpartition(": ") for line in results.splitlines())
    return [(name, status) for name, _, status in lines if name]


def survivors(results: str) -> list[str]:
    """Return the names of mutants that no test noticed."""
    return [name for name, status in statuses(results) if status in {"survived", "no tests", "suspicious"}]


if __name__ == "__main__":
    main()
