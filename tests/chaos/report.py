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

from tests.chaos.campaign import LONGEST_RECOVERY_S, Course, Plan
from tests.chaos.verdict import Verdict

Row = Sequence[object]

PARTS = ("torch", "redis", "rq", "fastapi")
MEANINGS = {
    "accepted": "jobs that the API accepted",
    "finished": "of these, jobs that reached a final status",
    "lost": "accepted jobs that never finished",
    "duplicated": "jobs that finished twice, have two videos, or were created twice by one request",
    "wrong_status": "jobs whose final status no fault and no cancel explains, or changed afterwards",
    "wrong_video": "jobs whose video differs from the one generated without faults",
    "orphaned_files": "files that should have been deleted",
    "orphaned_processes": "processes that still ran after the shutdown",
    "not_recovered": f"faults without recovery within {LONGEST_RECOVERY_S / 60:.0f} minutes",
    "unexpected_exits": "programs that exited although no fault ended them",
    "server_errors": "answers of 500, or of 503 without an outage",
    "missing_webhooks": "finished jobs of which no webhook was sent",
}
RECOVERY = (
    "A fault of a process, rank or job has recovered when its job runs again on other ranks or has finished, "
    "counted from the fault. An urgent job has recovered when it starts. Outages count from their end: those "
    "of Redis and the API until the API answers and sees a worker that is ready; those of S3 and webhook "
    "receivers until a file or webhook arrives; a full disk until its job has finished. After two faults at "
    "once, the end of a job is first looked for when both have been repaired."
)


def table(header: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def report(plan: Plan, course: Course, verdict: Verdict) -> str:
    """Return the report in Markdown."""
    finished = ", ".join(f"{count} {status}" for status, count in sorted(verdict.ended.items()))
    requeues = ", ".join(f"{count} {cause}" for cause, count in sorted(verdict.requeues.items())) or "none"
    found = {"accepted": verdict.accepted, "finished": verdict.accepted - len(verdict.lost)}
    found |= {name: len(violations) for name, violations in verdict.violations.items()}
    work = f"{verdict.steps_run} run, {verdict.steps_needed} needed"
    counts = [[name.replace("_", " "), count, MEANINGS[name]] for name, count in found.items()]
    violations = [f"- {name}: {what}" for name, cases in verdict.violations.items() for what in cases]
    return "\n\n".join(
        [
            f"# Fault campaign, seed {plan.seed}",
            _summary(course, verdict),
            table(["", "count", "meaning"], counts),
            f"Final status of the jobs: {finished}.",
            f"Jobs returned to the queue, by cause: {requeues}.",
            f"Denoising steps: {work}, a ratio of {verdict.work_repeated:.3f}.",
            table(["fault", "times", "median recovery, s", "longest recovery, s"], _recovery_rows(verdict)),
            RECOVERY,
            *(["\n".join(violations)] if violations else []),
        ]
    )


def _summary(course: Course, verdict: Verdict) -> str:
    jobs = f"{verdict.accepted} jobs ({len(course.videos)} different videos, and jobs that kill a rank)"
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    faults = f"{len(course.faults)} faults in {course.lasted_s:.0f} s"
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
        "faults": [asdict(fault) for fault in course.faults],
    }
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(plan, course, verdict) + "\n")


def _recovery_rows(verdict: Verdict) -> list[Row]:
    return [
        [kind, found.count, _shown(found.median_s), _shown(found.worst_s)]
        for kind, found in verdict.recoveries.items()
    ]


def _shown(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.1f}"


def _machine() -> str:
    load = "/".join(f"{load:.0f}" for load in os.getloadavg())
    return f"{os.cpu_count()} cores ({platform.machine()}, load {load} at the end)"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PARTS}}
