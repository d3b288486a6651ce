"""Test which package may import which, that no imports form a cycle, and that dependencies are declared."""

from __future__ import annotations

import graphlib
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement

from tests.architecture.source import PACKAGES, ROOT, Module, modules

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, IMPORT_RULES = PYPROJECT["project"], PYPROJECT["tool"]["importlinter"]

CLIENT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]

EXTRAS = {
    "jobs": {"s3"},
    "model": {"worker", "s3"},
    "service": {"service"},
    "stack": {"stack", "service"},
    "worker": {"worker"},
}
"""The extras that are installed where a package runs."""

TRANSITIVE = {
    "botocore",  # boto3
    "mypy-boto3-s3",
    "pydantic-core",  # pydantic
    "starlette",  # fastapi
    "triton",  # torch, where it is built for CUDA
    "typing-extensions",
}
"""Distributions that are part of a declared one in all but name."""


def run_import_linter(folder: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", command, "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}:{folder / 'client' / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_packages_import_only_what_they_may():
    done = run_import_linter(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_import_rule_reports_a_planted_import(tmp_path):
    """Break every contract of pyproject.toml in a tree of otherwise empty modules."""
    contracts = IMPORT_RULES["contracts"]
    named = {name for contract in contracts for name in contract["source_modules"]}
    named |= {name for contract in contracts for name in contract["forbidden_modules"]}
    for name in {*IMPORT_RULES["root_packages"], *named}:
        if name.partition(".")[0] in IMPORT_RULES["root_packages"]:
            folder = tmp_path / name.replace(".", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for package in (folder, *folder.relative_to(tmp_path).parents):
                (tmp_path / package / "__init__.py").touch()
    for number, contract in enumerate(contracts):
        source = tmp_path / contract["source_modules"][0].replace(".", "/")
        (source / f"planted_{number}.py").write_text(f"import {contract['forbidden_modules'][0]}\n")
    report = run_import_linter(tmp_path).stdout
    kept = [contract["name"] for contract in contracts if f"{contract['name']} BROKEN" not in report]
    assert kept == [], report


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*PACKAGES, "longcat_video_client", cache_dir=None)


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_imports_form_a_cycle(graph):
    assert find_cycle({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}) == []


def test_cycle_of_imports_is_found():
    assert sorted(set(find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}))) == ["a", "b", "c"]


def test_service_imports_only_spec_and_media_of_model(graph):
    imported = {
        name
        for module in graph.find_descendants("service")
        for name in graph.find_modules_directly_imported_by(module)
        if name.startswith("model")
    }
    assert [name for name in imported if not name.startswith(("model.spec", "model.media"))] == []


def test_worker_imports_model_and_torch_only_in_ranks_and_in_the_check_of_a_machine():
    assert [
        module.path
        for module in modules("worker")
        if {"model", "torch"} & {name.partition(".")[0] for name in module.imported}
        and not module.path.startswith(("worker/rank/", "worker/check/"))
    ] == []


def test_images_and_clips_are_decoded_only_in_the_fork_server(graph):
    users = {
        user
        for decoder in ("model.media.clips", "model.media.images")
        for user in graph.find_downstream_modules(decoder)
    }
    assert users == {"model.media.decoders", "model.media.forkserver"}


def test_every_import_is_a_declared_dependency():
    providers = packages_distributions()
    undeclared = [line for module in modules() for line in undeclared_imports(module, PROJECT, providers)]
    undeclared += [
        line for module in modules("client") for line in undeclared_imports(module, CLIENT, providers)
    ]
    assert not undeclared, "\n".join(undeclared)


def test_longcat_command_runs_without_extras():
    base = {Requirement(text).name for text in PROJECT["dependencies"]}
    extras = PROJECT["optional-dependencies"]
    others = {
        Requirement(text).name for extra in ("s3", "service", "worker") for text in extras[extra]
    } - base
    absent = [name for name, owners in packages_distributions().items() if others & {*owners}]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import service.cli.__main__"
    assert "fastapi" in absent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_client_needs_httpx_and_pydantic_only():
    assert [Requirement(text).name for text in CLIENT["dependencies"]] == ["httpx", "pydantic"]


def test_undeclared_import_is_reported():
    project = {
        "dependencies": ["pydantic>=2"],
        "optional-dependencies": {extra: [] for extras in EXTRAS.values() for extra in extras},
    }
    providers = {"pydantic": ["pydantic"], "yaml": ["PyYAML"]}
    module = Module("jobs/x.py", "import os, pydantic\ndef f(): import yaml")
    assert undeclared_imports(module, project, providers) == ["jobs/x.py: pyyaml"]


def undeclared_imports(module: Module, project: dict, providers) -> list[str]:
    """Return the distributions that a module imports, but its package does not declare."""
    declared = {normal(Requirement(text).name) for text in project["dependencies"]}
    for extra in EXTRAS.get(module.package, ()):
        declared |= {normal(Requirement(text).name) for text in project["optional-dependencies"][extra]}
    providers = defaultdict(list, providers)
    found = set()
    for top in {name.partition(".")[0] for name in module.imported} - {*PACKAGES, "longcat_video_client"}:
        names = {normal(name) for name in providers[top]}
        found |= names if len(names) <= 1 else set()  # several: a namespace package such as `google`
    undeclared = found - declared - TRANSITIVE
    return [
        f"{module.path}: {name}" for name in sorted(undeclared) if not name.startswith(("types-", "mypy-"))
    ]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
