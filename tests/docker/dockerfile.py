"""Read Dockerfiles that use only the instructions of this repository, one on each logical line."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

INSTRUCTIONS = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM"),
    *("HEALTHCHECK", "LABEL", "RUN", "USER", "VOLUME", "WORKDIR"),
}
# The tag is for readers, who would not know the version by its digest.
PINNED_IMAGE = re.compile(r"[a-z0-9./-]+:(?!latest@)[A-Za-z0-9._-]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Instruction:
    """A keyword and its arguments, continued lines joined."""

    keyword: str
    text: str


@dataclass(frozen=True)
class Dockerfile:
    """The instructions of one file."""

    path: Path
    instructions: tuple[Instruction, ...]

    def all(self, keyword: str) -> list[str]:
        """Return the arguments of each instruction with this keyword."""
        return [instruction.text for instruction in self.instructions if instruction.keyword == keyword]

    @property
    def arguments(self) -> dict[str, str]:
        """Return the build arguments that have a default value."""
        given = (text.partition("=") for text in self.all("ARG"))
        return {name: value for name, _, value in given if value.strip('"')}

    @property
    def environment(self) -> dict[str, str]:
        """Return all variables of ENV."""
        return self._pairs("ENV")

    @property
    def labels(self) -> dict[str, str]:
        """Return all labels."""
        return self._pairs("LABEL")

    def _pairs(self, keyword: str) -> dict[str, str]:
        pairs = (pair.partition("=") for text in self.all(keyword) for pair in shlex.split(text))
        return {name: value for name, _, value in pairs}

    @property
    def copied(self) -> list[str]:
        """Return the paths that COPY takes from the repository."""
        return [source for text in self.all("COPY") for source in shlex.split(text)[:-1]]

    @property
    def command(self) -> list[str]:
        """Return CMD, which is in exec form."""
        command: list[str] = json.loads(self.all("CMD")[-1])
        return command

    @property
    def entrypoint(self) -> list[str]:
        """Return ENTRYPOINT, which is in exec form."""
        entrypoint: list[str] = json.loads(self.all("ENTRYPOINT")[-1])
        return entrypoint

    @property
    def extras(self) -> set[str]:
        """Return the extras of this package that are installed."""
        return set(",".join(re.findall(r"'\.\[([a-z0-9,]+)\]'", " ".join(self.all("RUN")))).split(","))


def read_dockerfile(path: Path) -> Dockerfile:
    """Parse a Dockerfile. Raises AssertionError for an instruction that is not in `INSTRUCTIONS`."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    instructions = tuple(Instruction(*line.split(maxsplit=1)) for line in logical)
    assert {instruction.keyword for instruction in instructions} <= INSTRUCTIONS
    return Dockerfile(path, instructions)
