"""Measure everything that only a GPU can show: `python -m benchmarks.first_contact --out FOLDER`.

Time on a GPU may be short and may end at any moment, and what runs there for the first time may hang or break
the device for its process. So another process runs the stages (`benchmarks.run_stages`), the most important
one first. If it ends, or a stage takes longer than it may, a new process runs the stages that come next.

Each number is written to `measurements.jsonl` and synced to the disk as soon as it is known. At the end
`report.md` is made from whatever is there; `--report` makes it from the measurements of a run that was
killed. `--toy` runs all of it small on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TextIO

from benchmarks.children import kill_descendants
from stack.die_with_parent import dies_with_parent

TOTAL_LIMIT_S = 540.0
START, START_LIMIT_S = "start", 90.0  # what comes before the first stage: imports, and the search for a GPU
EXIT_LIMIT_S = 10.0
BLOCKS = "blocks"
SCALED = (": s", ": GB")
"""Ends of names whose values grow with the number of blocks, in a stage that states it as `BLOCKS`."""
MEASUREMENTS, REPORT = "measurements.jsonl", "report.md"


@dataclass(frozen=True)
class Measurement:
    """One line of the journal. `value` is a number, or a text such as a version or an error."""

    stage: str
    name: str
    value: float | str
    at_s: float


class Journal:
    """A file of measurements that survives whatever happens to this process or machine."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._began = time.monotonic()

    def add(self, stage: str, name: str, value: float | str) -> None:
        """Write a measurement to the disk, and print it."""
        measurement = Measurement(stage, name, value, round(time.monotonic() - self._began, 3))
        self._file.write(json.dumps(asdict(measurement)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        print(f"{measurement.at_s:8.1f} s  {stage}: {name} = {value}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 1 if a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_contact", description=__doc__)
    parser.add_argument("--toy", action="store_true", help="everything small, on a CPU")
    parser.add_argument("--rounds", type=int, default=3, help="how often each forward is timed")
    parser.add_argument("--only", action="append", metavar="STAGE", help="run this stage; may be repeated")
    parser.add_argument(
        "--limit",
        type=float,
        default=TOTAL_LIMIT_S,
        metavar="S",
        help="end the run after S, and each stage in proportion",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--report", action="store_true", help="measure nothing, only make the report")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        command = [sys.executable, "-m", "benchmarks.run_stages", str(options.out), str(options.rounds)]
        command += ["--toy"] * options.toy
        for stage in options.only or []:
            command += ["--only", stage]
        with (options.out / MEASUREMENTS).open("w") as file:
            run(command, Journal(file), options.limit)
    return write_report(options.out)


def run(command: Sequence[str], journal: Journal, limit_s: float) -> None:
    """Run stages by a command, and those after a stage that was lost with its process by another one."""
    ends_at, limit_factor = time.monotonic() + limit_s, limit_s / TOTAL_LIMIT_S
    lost = _run_process(command, journal, ends_at, limit_factor)
    while lost is not None:
        lost = _run_process([*command, "--after", lost], journal, ends_at, limit_factor)


def _run_process(command: Sequence[str], journal: Journal, ends_at: float, limit_factor: float) -> str | None:
    """Run stages in one process. Return the stage that was lost with it, None if no more are to be run.

    `ends_at` is the time when the whole run ends. The limits of stages are multiplied by the factor.
    """
    stage, stage_ends_at = START, time.monotonic() + START_LIMIT_S * limit_factor
    with _process(command) as (process, messages):
        while messages.poll(max(0.0, min(stage_ends_at, ends_at) - time.monotonic())):
            try:
                message = messages.recv()
            except EOFError:
                journal.add(stage, "error", f"the process ended: exit status {_exit_status(process)}")
                return None if stage == START else stage
            match message:
                case (began, limit_s):
                    stage, stage_ends_at = began, time.monotonic() + limit_s * limit_factor
                case (of, name, value):
                    journal.add(of, name, value)
                case _:  # the last one
                    return None
    if time.monotonic() >= ends_at:
        journal.add(stage, "error", "the whole run took longer than it may")
        return None
    journal.add(stage, "error", "took longer than it may")
    return None if stage == START else stage


@contextmanager
def _process(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """Start a program with the descriptor of a pipe as its last argument, and yield it and the pipe's end.

    Then kill what still runs of it.
    """
    messages, of_process = Pipe(duplex=False)
    with messages:
        with of_process:
            process = subprocess.Popen(
                dies_with_parent([*command, str(of_process.fileno())]), pass_fds=[of_process.fileno()]
            )
        try:
            yield process, messages
        finally:
            if process.poll() is None:
                kill_descendants(process.pid)
                process.kill()
                _exit_status(process)


def _exit_status(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end of a process. Return None if it takes too long, as where a driver hangs."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(EXIT_LIMIT_S)
    return process.returncode


def write_report(folder: Path) -> int:
    """Make the report from the measurements so far. Return 1 if there is an error among them."""
    lines = (folder / MEASUREMENTS).read_text().splitlines()
    found = [Measurement(**json.loads(line)) for line in lines if line.endswith("}")]  # the last may be cut
    report = render(found)
    (folder / REPORT).write_text(report)
    print(report)
    return int(any(measurement.name == "error" for measurement in found))


def render(found: Iterable[Measurement]) -> str:
    """Return the report: a table for each stage, with the median of what was measured more than once."""
    stages: dict[str, dict[str, list[float | str]]] = defaultdict(lambda: defaultdict(list))
    for measurement in found:
        stages[measurement.stage][measurement.name].append(measurement.value)
    ceiling = _median(stages.get("ceilings", {}).get("bf16 TFLOP/s", []))
    parts = ["# First contact with a GPU", ""]
    for stage, values in stages.items():
        parts += [f"## {stage}", "", "| | value | times |", "|---|---|---|"]
        share = _share_of_blocks(values.get(BLOCKS, []))
        for name, samples in values.items():
            parts.append(f"| {name} | {_text(samples, name, ceiling, share)} | {len(samples)} |")
        parts.append("")
    return "\n".join(parts)


def _share_of_blocks(samples: list[float | str]) -> float:
    """Return which part of the transformer's blocks a stage has run, given its "12 of 48"."""
    if not samples:
        return 1.0
    run, _, all_blocks = str(samples[-1]).partition(" of ")
    return int(run) / int(all_blocks)


def _text(samples: list[float | str], name: str, ceiling: float | None, share_of_blocks: float) -> str:
    value = _median(samples)
    if value is None:
        return str(samples[-1]).replace("|", "\\|").replace("\n", " ")
    text = f"{value:.4g}"
    if name.endswith(": TFLOP/s") and ceiling:
        text += f" ({100 * value / ceiling:.0f} % of the ceiling)"
    if name.endswith(SCALED) and share_of_blocks < 1:
        text += f" ({value / share_of_blocks:.4g} with all blocks, calculated)"
    return text


def _median(samples: list[float | str]) -> float | None:
    numbers = [sample for sample in samples if isinstance(sample, int | float)]
    return median(numbers) if numbers else None


if __name__ == "__main__":
    raise SystemExit(main())
