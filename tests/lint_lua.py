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

from jobs.store.scripts import FOLDER, source

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
    findings: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        place, _, message = line.partition(": ")
        findings.setdefault(message, []).append(place.removeprefix(f"{folder}/"))
    return [
        f"{places[0]}: {message}"
        for message, places in findings.items()
        if not _is_used_elsewhere(message, len(places), scripts)
    ]


def _is_used_elsewhere(message: str, num_findings: int, scripts: Mapping[str, str]) -> bool:
    unused = re.match(r"\(W211\) unused (?:variable|function) '(\w+)'", message)
    if unused is None:
        return False
    definition = re.compile(rf"^local (?:function )?[\w, ]*\b{unused[1]}\b", re.MULTILINE)
    return num_findings < sum(bool(definition.search(text)) for text in scripts.values())


def main() -> int:
    """Print the findings. Return the exit status."""
    findings = lint(assembled_scripts())
    sys.stdout.write("".join(f"{finding}\n" for finding in findings))
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
