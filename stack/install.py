"""Install packages with pip: show one line of progress, and print pip's output only after a failure.

Usage: `python install.py LOG_FILE PIP_ARGUMENT…`. make runs this file by its path when nothing is installed
yet, so it uses the standard library only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TextIO

PIP = (
    sys.executable,
    "-m",
    "pip",
    "--disable-pip-version-check",
    "install",
    "--progress-bar",
    "off",
    "--no-input",
    "--root-user-action",
    "ignore",
)


def install(arguments: list[str], log: Path, screen: TextIO) -> int:
    """Run `pip install` and return its exit code.

    Args:
        arguments: What to install, and pip's options.
        log: The file for pip's output.
        screen: Gets the line of progress if it is a terminal, and pip's output after a failure.
    """
    with (
        log.open("w", buffering=1) as lines,
        subprocess.Popen(
            [*PIP, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            lines.write(line)
            if screen.isatty() and (progress := describe(line)):
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\x1b[K    {progress}"[: width + 4], end="", file=screen, flush=True)
    if screen.isatty():
        print(end="\r\x1b[K", file=screen, flush=True)
    if pip.returncode:
        print(log.read_text(), f"pip failed; its output is also in {log}", sep="\n", file=screen)
    return pip.returncode


def describe(line: str) -> str | None:
    """Return what pip is doing, for a person, or None if this line of its output does not tell."""
    if found := re.match(r"Collecting ([\w.-]+)", line):
        return f"looking up {found[1]}"
    if found := re.match(r"\s+Downloading (?:\S*/)?([\w.]+-[\w.]+)\S* (\(.+\))", line):
        return f"downloading {found[1]} {found[2]}"
    if found := re.match(r"Installing collected packages: (.+)", line):
        return f"unpacking {len(found[1].split(','))} packages"
    return None


if __name__ == "__main__":
    sys.exit(install(sys.argv[2:], Path(sys.argv[1]), sys.stderr))
