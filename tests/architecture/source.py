"""Read our own source for the tests of rules that no linter knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("jobs", "model", "service", "stack", "worker")


@dataclass(frozen=True)
class Module:
    """A Python file: its path, relative to the repository, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Return the parsed text."""
        return ast.parse(self.text, self.path)

    @property
    def package(self) -> str:
        """Return the top-level package."""
        return self.path.partition("/")[0]

    @property
    def imported(self) -> Iterator[str]:
        """Yield the names of all imported modules, as they are written."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module

    @property
    def identifiers(self) -> Iterator[tuple[str, int]]:
        """Yield every name of a variable, attribute, argument, function, class or import, and its line."""
        for node in ast.walk(self.tree):
            for field in ("id", "attr", "arg", "name", "asname"):
                if isinstance(name := getattr(node, field, None), str):
                    yield name, getattr(node, "lineno", 0)


@cache
def modules(*folders: str) -> list[Module]:
    """Read all modules in these folders, sorted by path; in all our packages if none is named."""
    return [
        Module(str(path.relative_to(ROOT)), path.read_text())
        for folder in folders or PACKAGES
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
