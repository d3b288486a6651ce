"""Report a campaign: tables in Markdown, and all numbers as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.chaos.campaign import Course, Plan
from tests.chaos.verdict import Verdict

Row = Sequence[object]

PARTS = ("torch", "redis", "rq", "fastapi")


def table(header: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def report(plan: Plan, course: Course, verdict: Verdict) -> str:
    """Return the report in Markdown."""
    ended = ", ".join(f"{count} {how}" for how, count in sorted(verdict.ended.items()))
    counts = [["accepted", verdict.accepted], ["ended", verdict.accepted - len(verdict.lost)]]
    counts += [[name.replace("_", " "), len(found)] for name, found in verdict.faults.items()]
    put_back = ", ".join(f"{count} {cause}" for cause, count in sorted(verdict.put_back.items())) or "none"
    work = f"{verdict.work_repeated:.3f} ({verdict.steps_run} steps run, {verdict.steps_needed} needed)"
    wrongs = [f"- {name}: {what}" for name, found in verdict.faults.items() for what in found]
    return "\n\n".join(
        [
            f"# Fault campaign, seed {plan.seed}",
            _summary(course, verdict),
            table(["jobs", "count"], counts),
            f"They ended as: {ended}. Requeued: {put_back}. Work repeated: {work}.",
            table(["fault", "times", "recovered after, median s", "worst s"], _recovery_rows(verdict)),
            *(["\n".join(wrongs)] if wrongs else []),
        ]
    )


def _summary(course: Course, verdict: Verdict) -> str:
    jobs = f"{verdict.accepted} jobs ({len(course.videos)} different videos, and poison)"
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    faults = f"{len(course.strikes)} faults in {course.lasted_s:.0f} s"
    return f"{jobs} and {faults}, on {_machine()}, {versions}."


def write(folder: Path, plan: Plan, course: Course, verdict: Verdict) -> None:
    """Write `seed-N-jobs-M.json` and `.md` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"seed-{plan.seed}-jobs-{plan.jobs}"
    document = {
        "plan": asdict(plan),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": _versions(),
        "verdict": asdict(verdict),
        "strikes": [asdict(strike) for strike in course.strikes],
    }
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(plan, course, verdict) + "\n")


def _recovery_rows(verdict: Verdict) -> list[Row]:
    return [
        [kind, found.struck, _shown(found.median_s), _shown(found.worst_s)]
        for kind, found in verdict.recoveries.items()
    ]


def _shown(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.1f}"


def _machine() -> str:
    load = "/".join(f"{load:.0f}" for load in os.getloadavg())
    return f"{os.cpu_count()} cores ({platform.machine()}, load {load} at the end)"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PARTS}}
