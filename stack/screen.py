"""What the demo shows: lines, one line that lives while a job runs, and what each film is.

`stack.demo` calls it. It takes jobs as the service shows them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

BAR_WIDTH = 24


@dataclass
class Screen:
    """A terminal, on which the last line may change; or a file, which gets a line for each change."""

    stream: TextIO
    live: bool
    _last: str = field(default="", init=False)

    @classmethod
    def on_stdout(cls) -> Screen:
        """The screen of this process."""
        return cls(sys.stdout, live=sys.stdout.isatty())

    def say(self, text: str) -> None:
        """Write a line."""
        self._settle()
        print(text, file=self.stream, flush=True)

    def progress(self, name: str, job: dict[str, Any]) -> None:
        """Show how far a job is; the same once only."""
        text = f"{name:8} {describe(job)}"
        if text == self._last:
            return
        start, end = ("\r\x1b[K", "") if self.live else ("", "\n")
        print(start + text, end=end, file=self.stream, flush=True)
        self._last = text

    def film(self, path: Path, job: dict[str, Any]) -> None:
        """Say what a finished film is."""
        result = job["result"]
        took_s = sum(job["timings_s"].values())
        self.say(
            f"{path}: {result['num_frames']} frames of {result['width']}×{result['height']}"
            f" at {result['fps']} fps ({result['duration_s']:.1f} s), {result['size_bytes']:,} bytes,"
            f" seed {result['seed']}, made in {took_s:.1f} s"
        )

    def _settle(self) -> None:
        if self.live and self._last:
            print(file=self.stream)
        self._last = ""


def describe(job: dict[str, Any]) -> str:
    """One line on a job: its place in the queue, or its phase, step, bar and the time it still takes."""
    progress = job["progress"]
    if job["status"] == "queued":
        place = job["queue_position"]
        return "queued" if place is None else f"queued, number {place}"
    if job["status"] != "running" or progress is None:
        return str(job["status"])
    filled = round(BAR_WIDTH * progress["fraction"])
    bar = "█" * filled + "·" * (BAR_WIDTH - filled)
    step = f"{progress['step']}/{progress['num_steps']}" if progress["num_steps"] else ""
    eta = "" if progress["eta_s"] is None else f"{progress['eta_s']:.1f} s to go"
    return f"{progress['phase']:8} {step:6} {bar} {progress['fraction']:4.0%} {eta}".rstrip()
