"""Make mutants of a Lua script: one operator replaced, or one write to Redis left out."""

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

WRITES = re.compile(
    r"^\s*redis\.call\('(?:DEL|HDEL|HINCRBY|HSET|INCR|LPUSH|PEXPIRE|RPUSH|SET|XADD|ZADD|ZREM)\w*'.*\)$"
)


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
    if WRITES.match(code.rstrip()):
        yield re.sub(r"\S.*\S", "", code), f"without {code.strip()}"
    for old, new in REPLACEMENTS.items():
        for match in re.finditer(re.escape(old), code):
            changed = code[: match.start()] + new + code[match.end() :]
            yield changed, f"{code.strip()}  →  {changed.strip()}"
