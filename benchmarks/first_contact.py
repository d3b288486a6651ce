"""Measure everything that only a GPU can show: `python -m benchmarks.first_contact --out FOLDER`.

Time on a GPU may be short and may end at any moment. So everything runs in one process, the most important
stage first; each stage has a time limit, and the whole run has one. Each number is written to
`measurements.jsonl` and synced to the disk as soon as it is known. At the end `report.md` is made from
whatever is there; `--report` makes it from the measurements of a run that was killed.

A stage that fails is recorded with its error, and the next one runs. `--toy` runs all of it small on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TextIO

from benchmarks.children import kill_descendants
from benchmarks.gpu_cases import BLOCKS, STAGES, Rig, Stage

TOTAL_LIMIT_S = 540.0
SCALED = (": s", ": GB")
"""Ends of names whose values grow with the number of blocks, in a stage that states it."""
MEASUREMENTS, REPORT = "measurements.jsonl", "report.md"


AGAIN_AFTER_S = 2.0  # a finalizer or a library may discard an exception: it is raised again


class OutOfTime(BaseException):
    """A stage took longer than it may.

    It is not an `Exception`, because the compiler takes every `Exception` for a failed compilation, and would
    then run the plain code.
    """


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
    parser.add_argument("--only", choices=[stage.name for stage in STAGES], action="append")
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
    if options.report:
        return write_report(options.out)
    stages = [stage for stage in STAGES if options.only is None or stage.name in options.only]
    with (options.out / MEASUREMENTS).open("w") as file, hard_stop(options.limit, options.out):
        rig = Rig.prepare(toy=options.toy, rounds=options.rounds, folder=options.out)
        run(stages, rig, Journal(file), options.limit / TOTAL_LIMIT_S)
    return write_report(options.out)


def run(stages: Iterable[Stage], rig: Rig, journal: Journal, limit_factor: float = 1.0) -> None:
    """Run the stages in turn, each with its limit times the factor. An error ends its stage alone."""
    for stage in stages:
        try:
            with time_limit(stage.limit_s * limit_factor):
                for name, value in stage.measure(rig):
                    journal.add(stage.name, name, value)
        except (Exception, OutOfTime) as error:  # noqa: BLE001 - the next stages may still work
            traceback.print_exc()
            journal.add(stage.name, "error", f"{type(error).__name__}: {error}"[:500])
        rig.release()


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raise OutOfTime in this block after `limit_s`, once a call into the device returns.

    Raise it again and again until the block has ended.
    """
    has_ended = False

    def end(*_: object) -> None:
        if not has_ended:
            raise OutOfTime(f"took longer than {limit_s:g} s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_AFTER_S)
    try:
        yield
    finally:
        has_ended = True  # first of all: an alarm may come before the next line has run
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def hard_stop(limit_s: float, folder: Path) -> Iterator[None]:
    """End the process after `limit_s`, with a report, even while a call into the device hangs."""
    timer = threading.Timer(limit_s, end_now, (limit_s, folder))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_now(limit_s: float, folder: Path) -> None:
    """Write the report, and end this process and all that it has started, even without a report."""
    try:
        print(f"stopped after {limit_s:g} s", flush=True)
        write_report(folder)
    finally:
        kill_descendants()
        os._exit(1)


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
