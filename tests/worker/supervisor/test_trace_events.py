"""Check the timeline file as a trace viewer reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

from jobs.store.holder import Lease
from tests.worker.supervisor.backends import LocalBackends
from worker.supervisor.trace_events import trace_events
from worker.telemetry import Interval

NOW = 1_000_000.0


def interval(name: str, lane: str, began_s: float, ended_s: float, **more: object) -> Interval:
    return Interval(name=name, lane=lane, began_s=NOW + began_s, ended_s=NOW + ended_s, **more)


STAGES = [
    interval("load", "job", 2, 3),
    interval("step 1", "ranks", 3, 4, segment=1, detail=True),
    interval("denoise", "ranks", 3, 5, segment=1),
    interval("x264", "video", 5, 5.25),
    interval("video", "storage", 6, 7),
]


def claimed(backends: LocalBackends) -> Lease:
    """The lease of a job that was submitted at `NOW`."""
    backends.submit()
    lease = backends.claim()
    job = lease.job.model_copy(update={"created_at": datetime.fromtimestamp(NOW, UTC)})
    return replace(lease, job=job)


def of(document, kind):
    return [event for event in document["traceEvents"] if event["ph"] == kind]


def names(document):
    """Row names by thread id."""
    return {e["tid"]: e["args"]["name"] for e in of(document, "M") if e["name"] == "thread_name"}


def test_intervals_are_complete_events_in_microseconds_on_named_rows(backends):
    lease = claimed(backends)
    document = json.loads(json.dumps(trace_events(lease, STAGES)))
    rows = names(document)
    shown = {e["name"]: (rows[e["tid"]], e["ts"] - round(NOW * 1e6), e["dur"]) for e in of(document, "X")}
    mine = f"of {lease.job.id[:8]}"
    assert shown == {
        "queued": (f"waits {mine}", 0, 2_000_000),
        "load": (f"waits {mine}", 2_000_000, 1_000_000),
        "denoise": ("ranks", 3_000_000, 2_000_000),
        "step 1": ("ranks", 3_000_000, 1_000_000),
        "x264": (f"video {mine}", 5_000_000, 250_000),
        "video": (f"storage {mine}", 6_000_000, 1_000_000),
    }
    assert {e["args"]["segment"] for e in of(document, "X") if rows[e["tid"]] == "ranks"} == {1}
    assert {type(e[key]) for e in of(document, "X") for key in ("ts", "dur", "pid", "tid")} == {int}


def test_rows_belong_to_the_process_of_the_group_and_begin_with_its_ranks(backends):
    document = trace_events(claimed(backends), STAGES)
    (process,) = (e for e in of(document, "M") if e["name"] == "process_name")
    assert process["tid"] == 0
    assert {e["pid"] for e in document["traceEvents"]} == {process["pid"]}
    positions = {
        e["tid"]: e["args"]["sort_index"] for e in of(document, "M") if e["name"] == "thread_sort_index"
    }
    assert sorted(positions.values()) == [0, 1, 3, 4]
    rows = names(document)
    assert rows.keys() == positions.keys()
    assert rows[min(positions, key=positions.__getitem__)] == "ranks"
    assert {(e["name"], e["cat"]) for e in of(document, "X")} == {
        ("queued", "job"),
        *((each.name, each.lane) for each in STAGES),
    }


def test_rows_of_many_jobs_have_different_numbers(backends):
    lease, num_jobs = claimed(backends), 100
    rows = set[int]()
    for number in range(num_jobs):
        job = lease.job.model_copy(update={"id": f"job-{number}"})
        rows |= names(trace_events(replace(lease, job=job), STAGES)).keys()
    assert len(rows) == 1 + 3 * num_jobs  # the row of the ranks belongs to all


def test_interval_precedes_its_details(backends):
    lease = claimed(backends)
    events = of(trace_events(lease, STAGES), "X")
    for one, next_ in pairwise(events):
        if one["tid"] == next_["tid"]:
            assert one["ts"] < next_["ts"] or one["dur"] >= next_["dur"]


def test_jobs_of_a_group_share_only_the_row_of_its_ranks(backends):
    first, second = (trace_events(claimed(backends), STAGES) for _ in range(2))
    assert {e["pid"] for e in of(first, "X")} == {e["pid"] for e in of(second, "X")}
    (shared,) = names(first).keys() & names(second).keys()
    assert names(first)[shared] == "ranks"
    (process,) = [e for e in of(first, "M") if e["name"] == "process_name"]
    assert process["args"] == {"name": "group a"}


def test_later_attempt_has_no_queued_interval(backends):
    lease = claimed(backends)
    backends.job_store.holder.requeue(lease, crashed=True)
    events = of(trace_events(backends.claim(), STAGES), "X")
    assert {e["args"]["attempt"] for e in events} == {2}
    assert "queued" not in {e["name"] for e in events}


def test_no_duration_is_negative_if_clocks_differ(backends):
    lease = claimed(backends)
    intervals = [interval("load", "job", -5, -4), interval("x264", "video", 1, 0.5)]
    assert [e["dur"] for e in of(trace_events(lease, intervals), "X") if e["name"] in {"queued", "x264"}] == [
        0,
        0,
    ]
