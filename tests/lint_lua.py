"""Check the Lua scripts of the job store with luacheck, each as Redis gets it: with the parts that it shares.

`python -m tests.lint_lua` prints the findings and fails if there are any. Debian's package is `lua-check`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jobs.store.scripts import FOLDER, location, source

ROOT = Path(__file__).parents[1]


def assembled_scripts() -> dict[str, str]:
    """Return the text of every script by name."""
    return {path.stem: source(path.stem) for path in FOLDER.glob("*.lua")}


def lint(scripts: Mapping[str, str]) -> list[str]:
    """Return luacheck's findings. A shared definition has to be used by one script, not by each."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in scripts.items():
            Path(folder, f"{name}.lua").write_text(text)
        command = [
            "luacheck",
            "--config",
            str(ROOT / ".luacheckrc"),
            "--formatter",
            "plain",
            "--codes",
            folder,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > 2:  # 1 means warnings, 2 errors in a script
        raise RuntimeError(done.stdout + done.stderr)
    places_of: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        place, _, message = line.partition(": ")
        places_of.setdefault(message, []).append(place.removeprefix(f"{folder}/"))
    return [
        f"{places[0]}: {message}"
        for message, places in places_of.items()
        if not _is_used_elsewhere(message, len(places), scripts)
    ]


def findings() -> list[str]:
    """Return the findings in all scripts, each with the file that has it."""
    return [re.sub(r"^(\w+)\.lua:(\d+)", _in_file, finding) for finding in lint(assembled_scripts())]


def _in_file(found: re.Match[str]) -> str:
    return location(found[1], int(found[2]))


def _is_used_elsewhere(message: str, num_findings: int, scripts: Mapping[str, str]) -> bool:
    unused = re.match(r"\(W211\) unused (?:variable|function) '(\w+)'", message)
    if unused is None:
        return False
    definition = re.compile(rf"^local (?:function )?[\w, ]*\b{unused[1]}\b", re.MULTILINE)
    return num_findings < sum(bool(definition.search(text)) for text in scripts.values())


def main() -> int:
    """Print the findings. Return the exit status."""
    found = findings()
    sys.stdout.write("".join(f"{finding}\n" for finding in found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
