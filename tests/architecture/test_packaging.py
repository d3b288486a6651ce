"""Test that dependencies are pinned, that `make` lists its targets and that scripts stop at an error."""

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


def test_every_pin_is_an_exact_version():
    assert [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)] == []


def test_every_requirement_is_pinned_to_an_allowed_version():
    assert unpinned(REQUIREMENTS, PINS) == []


def test_missing_and_forbidden_pins_are_found():
    assert unpinned(["a>=2", "b>=2", "c>=2"], ["a==2.1", "b==1.9"]) == ["b>=2", "c>=2"]


def unpinned(requirements: list[str], pins: list[str]) -> list[str]:
    """Return the requirements that no pin fulfils. Extras of this project itself need none."""
    versions = {normal(name): version for name, _, version in (pin.partition("==") for pin in pins)}
    wanted = {text: Requirement(text) for text in requirements}
    return [
        text
        for text, requirement in wanted.items()
        if normal(requirement.name) != PROJECT["name"]
        and not requirement.specifier.contains(versions.get(normal(requirement.name), "0"))
    ]


def test_make_alone_lists_every_target_with_a_line():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = re.findall(r"^make ([a-z-]+) +\S", shown.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(targets[1].split())


@pytest.mark.parametrize("script", [".ci/run", "docker/make-secrets.sh"])
def test_scripts_are_executable_and_stop_at_the_first_error(script):
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
