"""Who may import whom, and that imports go round in no circle."""

from __future__ import annotations

import graphlib
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions

import grimp
import pytest
from packaging.requirements import Requirement

from tests.architecture.source import PACKAGES, ROOT, modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

EXTRAS = {
    "jobs": {"s3"},
    "model": {"worker"},
    "service": {"service"},
    "stack": {"stack", "service"},
    "worker": {"worker"},
}
"""What is installed where a package runs, beside the dependencies of all."""


def test_the_arrows_between_the_packages_are_kept():
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
        "--no-cache",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def test_no_imports_go_round_in_a_circle(graph):
    order = graphlib.TopologicalSorter(
        {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    )
    order.prepare()  # raises CycleError, which names the circle


def test_service_imports_only_spec_and_media_of_model(graph):
    taken = {
        imported
        for module in graph.find_descendants("service")
        for imported in graph.find_modules_directly_imported_by(module)
        if imported.startswith("model")
    }
    assert taken <= graph.find_descendants("model.spec") | graph.find_descendants("model.media")


def test_images_and_clips_are_decoded_in_the_fork_server_alone(graph):
    users = {
        user
        for decoder in ("model.media.clips", "model.media.images")
        for user in graph.find_downstream_modules(decoder)
    }
    assert users == {"model.media.decoders", "model.media.forkserver"}


def test_only_what_the_ranks_use_takes_anything_of_model(graph):
    takers = {
        module
        for module in graph.find_descendants("worker")
        if any(name.startswith("model") for name in graph.find_modules_directly_imported_by(module))
    }
    used_by_supervisor = graph.find_upstream_modules("worker.supervisor.supervisor")
    assert takers.isdisjoint(used_by_supervisor)
    assert takers <= graph.find_upstream_modules("worker.rank.main") | {"worker.rank.main"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_imports_only_what_is_installed_where_it_runs(package):
    installed = {normal(Requirement(text).name) for text in PROJECT["dependencies"]}
    for extra in EXTRAS[package]:
        installed |= {normal(Requirement(text).name) for text in PROJECT["optional-dependencies"][extra]}
    assert third_party(package) - installed == set()


def third_party(package: str) -> set[str]:
    """Distributions that a package imports, except for types alone."""
    providers = defaultdict(list, packages_distributions())
    found = set()
    for module in modules(package):
        for top in {name.partition(".")[0] for name in module.imported} - set(PACKAGES):
            names = {normal(name) for name in providers[top]}
            found |= names if len(names) <= 1 else set()
    return {name for name in found if not name.startswith(("types-", "mypy-"))} - FOLLOW_OTHERS


FOLLOW_OTHERS = {
    "botocore",  # boto3
    "mypy-boto3-s3",
    "pydantic-core",  # pydantic
    "starlette",  # fastapi
    "triton",  # torch, where it is built for CUDA
    "typing-extensions",
}
"""Comes with what we do name, of which it is a part in all but name."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
