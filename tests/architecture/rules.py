"""Rules for our own source that no linter knows. Each yields one line for each offender in a module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.architecture.source import Module

ENVIRONMENT_READERS = {
    "jobs/settings.py": "reads values from files, for the service and the worker alike",
    "model/parallel/device.py": "sets a default of PyTorch, which has no function for it",
    "stack/settings.py": "passes the environment on to the processes that it starts",
    "worker/settings.py": "passes the environment on to the ranks",
}

MATRIX_RANK = {"model/transformer/lora.py", "model/tiny.py"}
"""Modules that speak of the rank of a matrix, not of a process."""

VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}

QUESTION_WORDS = {"as", "how", "one", "what", "when", "where", "whether", "which", "who", "whoever", "whose"}
NOT_VERBS = QUESTION_WORDS | {
    *("a", "all", "an", "any", "at", "both", "each", "every", "everything", "for", "from", "how", "if", "in"),
    *("its", "no", "nothing", "of", "on", "same", "such", "that", "the", "there", "these", "this", "to"),
}


def no_module_state(module: Module) -> Iterator[str]:
    """Find `global` statements."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield f"{module.path}:{node.lineno}: global {', '.join(node.names)}"


def nothing_runs_at_import(module: Module) -> Iterator[str]:
    """Find statements at the top level that are not a definition, assignment, import or docstring."""
    definitions = (
        *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
        *(ast.Assign, ast.AnnAssign),
    )
    for node in module.tree.body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_guard = isinstance(node, ast.If) and ast.unparse(node.test) in {
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        }
        if not (isinstance(node, definitions) or is_docstring or is_guard):
            yield f"{module.path}:{node.lineno}: runs at import: {ast.unparse(node).splitlines()[0]}"


def environment_is_read_in_settings(module: Module) -> Iterator[str]:
    """Find reads of the environment outside the settings of a process."""
    if module.path in ENVIRONMENT_READERS:
        return
    for name, line in module.identifiers:
        if name in {"environ", "environb", "getenv"}:
            yield f"{module.path}:{line}: reads the environment"


def model_does_not_know_that_it_is_parallel(module: Module) -> Iterator[str]:
    """Find names of ranks and process groups in the model outside `model/parallel/`."""
    if module.package != "model" or module.path.startswith("model/parallel/") or module.path in MATRIX_RANK:
        return
    for name, line in module.identifiers:
        if {"rank", "dist", "world", "distributed"} & set(name.lower().split("_")):
            yield f"{module.path}:{line}: speaks of ranks: {name}"


def names_state_a_purpose(module: Module) -> Iterator[str]:
    """Find modules and classes whose name says nothing about what is in them."""
    for part in module.path.removesuffix(".py").split("/"):
        if VAGUE_NAMES & set(part.lower().split("_")):
            yield f"{module.path}: vague name {part}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and VAGUE_NAMES & {
            word.lower() for word in re.findall("[A-Z]+(?![a-z])|[A-Z][a-z]*|[a-z]+", node.name)
        }:
            yield f"{module.path}:{node.lineno}: vague name {node.name}"


def docstrings_are_imperative(module: Module) -> Iterator[str]:
    """Find docstrings of functions that begin with no verb, and others that begin with a question word."""
    for node in ast.walk(module.tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        words = (ast.get_docstring(node) or "").split()
        forbidden = QUESTION_WORDS if isinstance(node, (ast.Module, ast.ClassDef)) else NOT_VERBS
        if words and words[0].strip("`,:").lower() in forbidden:
            yield f"{module.path}:{getattr(node, 'lineno', 1)}: begins with no verb: {' '.join(words[:6])} …"


RULES = (
    no_module_state,
    nothing_runs_at_import,
    environment_is_read_in_settings,
    model_does_not_know_that_it_is_parallel,
    names_state_a_purpose,
    docstrings_are_imperative,
)
