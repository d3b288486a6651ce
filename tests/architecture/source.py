"""Our source as trees, for tests of rules that a linter does not know."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("jobs", "model", "service", "stack", "worker")


@dataclass(frozen=True)
class Module:
    """One file of source; `path` is relative to the repository."""

    path: str

    @cached_property
    def text(self) -> str:
        """What stands in it."""
        return (ROOT / self.path).read_text()

    @cached_property
    def tree(self) -> ast.Module:
        """The same, parsed."""
        return ast.parse(self.text, self.path)

    @property
    def package(self) -> str:
        """The top folder."""
        return self.path.partition("/")[0]

    @property
    def imported(self) -> Iterator[str]:
        """Names of modules imported anywhere in it, as they are written."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module

    @property
    def identifiers(self) -> Iterator[str]:
        """Every name in the code: of variables, attributes, arguments, functions, classes, imports."""
        for node in ast.walk(self.tree):
            for field in ("id", "attr", "arg", "name", "asname"):
                if isinstance(name := getattr(node, field, None), str):
                    yield name


def modules(*packages: str) -> list[Module]:
    """All files of these packages, by path; of all our packages if none is named."""
    return [
        Module(str(path.relative_to(ROOT)))
        for package in packages or PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
