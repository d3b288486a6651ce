"""Run the tests on one mutant of a Lua script after the other.

Each run is a fork of this process, which has imported the tests already, and runs only tests that use the
mutated script, the fastest first, until one fails. A first run without a mutant records what each test uses
and how long it takes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.store import scripts
from tests.mutation.lua import Mutant, lua_mutants

TESTS = ["tests/jobs/store", "tests/jobs/test_registration.py", "tests/jobs/test_maintenance.py"]
SEED = 16  # a sample is the same whenever it is drawn
LONGEST_TEST_S = 5.0  # tests that take longer do not run on mutants
QUIET = ["-x", "--quiet", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class TestRecord:
    """What one test used when it ran without a mutant."""

    test: str
    scripts: list[str]
    seconds: float


class ScriptRecorder:
    """A plugin of pytest that records the scripts that each test runs, and the time that it takes."""

    def __init__(self) -> None:
        self.records: list[TestRecord] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run one test."""
        used: set[str] = set()
        run = scripts.Scripts.run

        def run_and_record(self: scripts.Scripts, name: str, **given: object) -> object:
            used.add(name)
            return run(self, name, **given)

        began = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scripts.Scripts, "run", run_and_record)
            result = yield
        self.records.append(TestRecord(item.nodeid, sorted(used), time.monotonic() - began))
        return result


def main(sample: int | None) -> None:
    """Print the mutants that survive, of all mutants or of a random sample of this size."""
    pytest.main(["--collect-only", "--quiet", "--no-summary", *TESTS])  # to import the tests
    records = record_tests(TESTS)
    mutants = [(path, mutant) for path in lua_files() for mutant in lua_mutants(path.read_text())]
    random.Random(SEED).shuffle(mutants)
    num_survivors = 0
    for path, mutant in mutants[:sample]:
        if survives(path, mutant, records):
            num_survivors += 1
            print(f"{path.relative_to(scripts.FOLDER)}:{mutant.line}: {mutant.change}", flush=True)
    print(f"{num_survivors} of {len(mutants[:sample])} mutants survived, of {len(mutants)} that there are")


def lua_files() -> list[Path]:
    """Return the scripts and their parts."""
    return sorted(scripts.FOLDER.rglob("*.lua"))


def record_tests(tests: Sequence[str]) -> list[TestRecord]:
    """Run all tests once. Return those that are fast enough and use a script, the fastest first."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        recorder = ScriptRecorder()
        code = pytest.main([*QUIET, *tests], plugins=[recorder])
        with os.fdopen(write_end, "w") as pipe:
            json.dump([vars(record) for record in recorder.records if code == 0], pipe)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        records = [TestRecord(**record) for record in json.load(pipe)]
    os.waitpid(child, 0)
    if not records:
        sys.exit("the tests fail without a mutant")
    fast = [record for record in records if record.scripts and record.seconds <= LONGEST_TEST_S]
    return sorted(fast, key=lambda record: record.seconds)


def survives(path: Path, mutant: Mutant, records: Sequence[TestRecord]) -> bool:
    """Return whether all tests that use the mutated file pass. A mutant on which they hang is killed."""
    original = path.read_text()
    users = {name for name in script_names() if original in scripts.source(name)}
    chosen = [record for record in records if users.intersection(record.scripts)]
    if not chosen:
        return True
    limit_s = 30 + 5 * sum(record.seconds for record in chosen)
    path.write_text(mutant.text)
    try:
        return passes([record.test for record in chosen], limit_s)
    finally:
        path.write_text(original)


def script_names() -> list[str]:
    """Return the names of all scripts."""
    return [path.stem for path in scripts.FOLDER.glob("*.lua")]


def passes(tests: Sequence[str], limit_s: float) -> bool:
    """Run tests in a fork with a process group of its own, which is killed when the time is over."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        scripts.lines.cache_clear()
        os._exit(pytest.main([*QUIET, "--timeout=60", *tests]) != 0)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else None)
