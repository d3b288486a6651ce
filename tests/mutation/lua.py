"""Make mutants of a Lua script: one operator or constant replaced, or one statement left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

REPLACEMENTS = {
    "<=": "<",
    ">=": ">",
    "==": "~=",
    "~=": "==",
    " < ": " <= ",
    " > ": " >= ",
    " + ": " - ",
    " - ": " + ",
    " and ": " or ",
    " or ": " and ",
    "not ": "",
    "true": "false",
    "false": "true",
    " 1": " 2",
    " 0": " 1",
}

CALL = re.compile(r"^\s*[\w.]+\(.*\)$")  # a call whose result is not used
CHECK = re.compile(r"^\s*if .* then .* end$")  # a condition and what it causes, on one line


@dataclass(frozen=True)
class Mutant:
    """The text of a changed script, the number of the changed line, and the change in words."""

    text: str
    line: int
    change: str


def lua_mutants(text: str) -> Iterator[Mutant]:
    """Yield every mutant of a script. Comments are left alone."""
    lines = text.splitlines(keepends=True)
    for index, line in enumerate(lines):
        code, dashes, comment = line.partition("--")
        for changed, change in _changes_of(code):
            mutated = [*lines[:index], changed + dashes + comment, *lines[index + 1 :]]
            yield Mutant("".join(mutated), index + 1, change)


def _changes_of(code: str) -> Iterator[tuple[str, str]]:
    statement = code.rstrip()
    if CALL.match(statement) or CHECK.match(statement):
        yield re.sub(r"\S.*\S", "", code), f"without {code.strip()}"
    for old, new in REPLACEMENTS.items():
        for match in re.finditer(re.escape(old), code):
            changed = code[: match.start()] + new + code[match.end() :]
            yield changed, f"{code.strip()}  →  {changed.strip()}"
