"""The jobs of the elastic benchmark last as staged, and their latents are those of one rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.elastic import __main__ as program
from benchmarks.elastic import pace
from benchmarks.elastic.__main__ import GROUPS, Options, compare, main
from benchmarks.elastic.installation import Outcome, Run
from benchmarks.elastic.rank import PacedEngine
from benchmarks.elastic.report import SAME_LATENTS, difference, summary
from benchmarks.elastic.trace import REQUESTS, Video, draw_trace, plan_of, videos_of
from benchmarks.machine import Machine
from benchmarks.simulation import times
from benchmarks.simulation.trace import MIX, Arrival
from model.parallel.mesh import SINGLE
from model.pipeline.events import Encoded, Event, Latents, SegmentDone, Stepped
from model.pipeline.state import State
from tests.orders import make_order
from tests.worker.examples import ORDER
from worker.messages import RunJob
from worker.rank.engine import InputsRead

LATENTS = torch.ones(1, 16, 1, 2, 2)


@pytest.mark.parametrize("kind", MIX, ids=lambda kind: kind.name)
@pytest.mark.parametrize("width", [1, 4])
def test_small_jobs_take_as_long_as_those_of_the_simulation(kind, width, tmp_path):
    released = times.run_s(Arrival(at_s=0, request=kind.params).plan, width)
    assert pace.run_s(plan_of(kind, tmp_path), width) == pytest.approx(released, rel=0.05)


def test_trace_has_a_few_videos_that_repeat(tmp_path):
    trace = draw_trace(seed=1, num_jobs=60, load=0.85, checkpoint=tmp_path)
    assert trace == draw_trace(seed=1, num_jobs=60, load=0.85, checkpoint=tmp_path)
    assert {video.kind for video in videos_of(trace)} == set(REQUESTS)
    assert len(videos_of(trace)) <= 12


def test_difference_is_that_of_the_furthest_latent():
    moved = LATENTS.clone()
    moved[0, 3, 0, 1, 1] += 0.25
    assert difference({"0-denoise": moved}, {"0-denoise": LATENTS}) == 0.25
    with pytest.raises(AssertionError):
        difference({}, {"0-denoise": LATENTS})


def test_groups_that_run_again_replace_only_their_own_results(tmp_path, monkeypatch):
    def run_all(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["elastic", "--out", str(tmp_path), *arguments])
        main()
        groups: dict[str, Any] = json.loads((tmp_path / "elastic.json").read_text())["groups"]
        return {name: each["deadlines_met"] for name, each in groups.items()}

    share = 0.5
    monkeypatch.setattr(program, "compare", lambda _, groups: [(name, _summary(share)) for name in groups])
    assert run_all() == dict.fromkeys(GROUPS, 0.5)
    share = 0.75
    assert run_all("--only", "elastic") == {**dict.fromkeys(GROUPS, 0.5), "elastic": 0.75}
    assert "| deadlines met | 75.0 % | 50.0 % | 50.0 % | 50.0 % |" in (tmp_path / "elastic.md").read_text()
    assert run_all("--only", "2 of 2", "--seed", "2") == {"2 of 2": 0.75}  # other jobs


def _summary(share: float) -> dict[str, Any]:
    video = Video("50 steps", 0)
    outcome = Outcome(video, 1.0, deadline_met=True, gpu_s=1.0, attempts=1, latents={"0-denoise": LATENTS})
    run = Run([outcome], num_changes=0, max_widths=1, staged_gpu_s=0.5, late_steps=0.0, late_decodes=0.0)
    found = summary(run, {outcome.video: {"0-denoise": LATENTS}}, 4.0)
    return {**found, "machine": asdict(Machine.here()), "deadlines_met": share}


class InstantEngine:
    """Make a clip of four steps in no time."""

    def generate(self, run: RunJob) -> Iterator[InputsRead | Event]:
        state = State.begin(0)
        yield InputsRead()
        yield Encoded("denoise", 0)
        for step in range(1, 5):
            yield Stepped("denoise", 0, step, 4, state)
        yield Latents("denoise", 0, LATENTS)
        yield SegmentDone(0, state)


def test_job_lasts_at_least_as_long_as_staged(tmp_path, monkeypatch):
    slept_s: list[float] = []
    monkeypatch.setattr("benchmarks.elastic.rank.time.sleep", slept_s.append)
    (tmp_path / "latents").mkdir()
    order = make_order(ORDER, num_inference_steps=4, guidance_scale=1.0)
    engine = PacedEngine(InstantEngine(), tmp_path, 0.5, SINGLE)  # type: ignore[arg-type]
    events = list(engine.generate(RunJob(job_id="j", order=order, folder=tmp_path)))
    assert [type(event) for event in events[-2:]] == [Latents, SegmentDone]
    assert sum(slept_s) == pytest.approx(pace.run_s(order.plan, 1) / 2, rel=0.05)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["width"]) for line in lines] == [("Stepped", 1)] * 4 + [("SegmentDone", 1)]
    assert Path(tmp_path / "latents" / "j-0-denoise.safetensors").exists()


@pytest.mark.soak
def test_jobs_that_change_their_ranks_have_the_latents_of_one_rank():
    options = Options(jobs=8, seed=1, load=3.0, speedup=20.0)
    found: Any = dict(compare(options, {"elastic": "auto"}))["elastic"]
    assert found["difference"] <= SAME_LATENTS
    assert found["attempts"] == options.jobs
    assert found["num_changes"] > 0
