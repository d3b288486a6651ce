"""What `docs/gpus.md` promises holds: whole jobs need no more than is predicted, and little less.

One video of each kind of weights and of each precision runs here, with weights of full size, and one of them
again after videos of other sizes. All of the page run in `python -m benchmarks.promises`.
"""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.untyped import run_program

pytestmark = pytest.mark.integration

JOBS = """
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.hollow_checkpoint import write_hollow
from benchmarks.job_memory import job_peaks
from benchmarks.promises import promises
from docs.gpus_page import released_plans, released_sizes
from model.io.sizes import read_sizes
from model.spec.memory import memory_needed

WANTED = [
    ("text to video", "bfloat16", "streamed"),
    ("continuation of a clip", "int8", "sharded"),
    ("text to video, 720p, balanced", "fp8", "whole"),
]
with tempfile.TemporaryDirectory() as folder:
    checkpoint = Path(folder)
    write_hollow(checkpoint)
    sizes = read_sizes(checkpoint)
    assert sizes == released_sizes()
    of_smallest = {}
    for promise in promises(sizes):
        of_smallest.setdefault((promise.video, promise.precision, promise.weights), promise)
    jobs = []
    others = [released_plans()[name] for name in ("text to video, 720p", "text to video, refined")]
    for name, earlier_plans in (*((name, []) for name in WANTED), (WANTED[0], others)):
        plan, setup = of_smallest[name].plan, of_smallest[name].setup
        peaks = job_peaks(checkpoint, plan, setup, of_smallest[name].limit_bytes, earlier_plans)
        for is_leader, peak in zip((True, False), peaks, strict=False):
            need = memory_needed(sizes, plan, setup, is_leader=is_leader)
            jobs.append({
                "name": name, "is_first": not earlier_plans,
                "peak": peak.size_bytes, "predicted": need.total, "place": peak.place,
            })
        if name == WANTED[0] and not earlier_plans:
            try:
                job_peaks(checkpoint, plan, setup, peaks[0].size_bytes - 1)
                error = None
            except torch.OutOfMemoryError as raised:
                error = str(raised)
print(json.dumps({"jobs": jobs, "error": error}))
"""


@pytest.fixture(scope="module")
def ran():
    return json.loads(run_program(JOBS).stdout)


def test_jobs_need_no_more_than_is_predicted_and_not_much_less(ran):
    assert [job["is_first"] for job in ran["jobs"]] == [True] * 5 + [False]
    for job in ran["jobs"]:
        assert 0.95 * job["predicted"] <= job["peak"] <= job["predicted"], job


def test_job_that_needs_a_byte_more_than_its_limit_runs_out_of_memory(ran):
    assert ran["error"] is not None
    assert f"{ran['jobs'][0]['peak']} bytes are alive" in ran["error"]
