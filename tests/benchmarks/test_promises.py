"""What `docs/gpus.md` promises holds: whole jobs need no more than is predicted, and little less.

One video of each kind of weights and of each precision runs here, with weights of full size, one of them
again after videos of other sizes, and two of several segments. All of the page run in
`python -m benchmarks.promises`.
"""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.untyped import run_program

pytestmark = pytest.mark.integration

JOBS = """
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.hollow_checkpoint import write_hollow
from benchmarks.job_memory import job_peaks
from benchmarks.promises import promises
from docs.gpus_page import released_plans, released_sizes
from model.sizes import read_sizes
from model.spec.limits import Limits
from model.spec.memory import Setup, memory_needed
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve

WANTED = [
    ("text to video", "bfloat16", "streamed"),
    ("continuation of a clip", "int8", "sharded"),
    ("text to video, 720p, balanced", "fp8", "whole"),
]

def long_video(**options):
    params = GenerationParams(num_segments=2, **options)
    return resolve(params, Inputs(), Limits.from_json({}), step_cache=0.1)

with tempfile.TemporaryDirectory() as folder:
    checkpoint = Path(folder)
    write_hollow(checkpoint)
    sizes = read_sizes(checkpoint)
    assert sizes == released_sizes()
    of_smallest = {}
    for promise in promises(sizes):
        of_smallest.setdefault((promise.video, promise.precision, promise.weights), promise)
    wanted = [(name, of_smallest[name].plan, of_smallest[name].setup, []) for name in WANTED]
    name, plan, streamed, _ = wanted[0]
    others = [released_plans()[name] for name in ("text to video, 720p", "text to video, refined")]
    sharded = Setup(2, shard_weights=True, text_encoder="offload")
    wanted += [
        (f"{name}, after other sizes", plan, streamed, others),
        ("long video, refined", long_video(refine=True), replace(sharded, ranks=4), []),
        ("long video, balanced", long_video(quality="balanced"), sharded, []),
    ]
    jobs = []
    for name, plan, setup, earlier_plans in wanted:
        limit_bytes = of_smallest[name].limit_bytes if name in WANTED else None
        peaks = job_peaks(checkpoint, plan, setup, limit_bytes, earlier_plans)
        for is_leader, peak in zip((True, False), peaks, strict=False):
            need = memory_needed(sizes, plan, setup, is_leader=is_leader)
            jobs.append({"name": name, "peak": peak.size_bytes, "predicted": need.total, "place": peak.place})
        if name == WANTED[0]:
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
    assert len(ran["jobs"]) == 10
    for job in ran["jobs"]:
        assert 0.95 * job["predicted"] <= job["peak"] <= job["predicted"], job


def test_job_that_needs_a_byte_more_than_its_limit_runs_out_of_memory(ran):
    assert ran["error"] is not None
    assert f"{ran['jobs'][0]['peak']} bytes are alive" in ran["error"]
