"""What is installed is pinned, what is pinned is exact, and `make` tells what it can do."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.architecture.source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
REQUIREMENTS = sorted(
    {
        *PROJECT["dependencies"],
        *(text for extra in PROJECT["optional-dependencies"].values() for text in extra),
    }
)


@pytest.mark.parametrize("pin", PINS)
def test_every_pin_is_exact_and_from_the_index(pin):
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_everything_required_is_pinned_to_a_version_that_is_allowed(text):
    wanted = Requirement(text)
    pinned = {normal(name): version for name, _, version in (pin.partition("==") for pin in PINS)}
    assert normal(wanted.name) == PROJECT["name"] or wanted.specifier.contains(pinned[normal(wanted.name)])


def test_make_alone_lists_every_target_with_a_line():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = re.findall(r"^make ([a-z]+) +\S", shown.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(targets[1].split())


@pytest.mark.parametrize("script", [".ci/run", "docker/make-secrets.sh"])
def test_scripts_are_executable_and_stop_at_the_first_error(script):
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
