"""The rules of the house that a linter does not know, held by reading our own source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.architecture.source import Module, modules

READS_ENVIRONMENT = {
    "jobs/settings.py": "values in files, for the service and the worker alike",
    "stack/settings.py": "hands it to the processes that it starts",
    "worker/settings.py": "hands it to the group",
}

LOW_RANK = {"model/io/lora.py", "model/tiny.py"}
"""Speak of the rank of a matrix, not of a process."""

every_module = pytest.mark.parametrize("module", modules(), ids=lambda module: module.path)


@every_module
def test_there_is_no_module_state(module):
    assert not [node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.Global)]


@every_module
def test_importing_does_nothing(module):
    quiet = (
        *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
        *(ast.Assign, ast.AnnAssign),
    )
    loud = [node for node in module.tree.body if not isinstance(node, quiet) and not _is_quiet(node)]
    assert [ast.unparse(node).splitlines()[0] for node in loud] == []


def _is_quiet(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)  # a docstring
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "__name__ == '__main__'"}


@every_module
def test_the_environment_is_read_in_the_settings_alone(module):
    reads = {"environ", "environb", "getenv"} & set(module.identifiers)
    assert not reads or module.path in READS_ENVIRONMENT


@pytest.mark.parametrize("module", modules("model"), ids=lambda module: module.path)
def test_the_model_does_not_know_that_it_is_parallel(module):
    if module.path.startswith("model/parallel/") or module.path in LOW_RANK:
        return
    words = {word for name in module.identifiers for word in name.lower().split("_")}
    assert words.isdisjoint({"rank", "dist", "world", "distributed"})


@every_module
def test_names_say_what_is_in_it(module):
    assert set(Path(module.path).with_suffix("").parts).isdisjoint(
        {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    )


@pytest.mark.parametrize("module", modules("jobs", "model"), ids=lambda module: module.path)
def test_everything_public_says_what_its_signature_cannot(module):
    documented = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    silent = [
        node.name
        for scope in (module.tree, *_public_classes(module.tree))
        for node in scope.body
        if isinstance(node, documented)
        and not node.name.startswith("_")
        and not _inherits_its_docstring(node)
        if ast.get_docstring(node) is None
    ]
    assert silent == []
    assert ast.get_docstring(module.tree)


def _public_classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def _inherits_its_docstring(node: ast.stmt) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(ast.unparse(decorator) in {"override", "overload"} for decorator in decorators)


def test_a_listed_exception_is_still_one():
    assert all({"environ", "getenv"} & set(Module(path).identifiers) for path in READS_ENVIRONMENT)
    assert all("rank" in Module(path).identifiers for path in LOW_RANK)
