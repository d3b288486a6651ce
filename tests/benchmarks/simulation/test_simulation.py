"""A simulated fleet runs every job once, in the order of its queue, and always with the same result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from redis import Redis

from benchmarks.simulation.__main__ import POLICIES, Policy, run_large, simulate, trace_at
from benchmarks.simulation.fairness import fairness
from benchmarks.simulation.fleets import FixedGroups, Group
from benchmarks.simulation.queues import (
    LEASE_S,
    Claim,
    Clock,
    PlainQueue,
    Queue,
    StoreQueue,
    Swept,
    by_arrival,
)
from benchmarks.simulation.report import summarise
from benchmarks.simulation.simulator import CHECKPOINT_S, SWEEP_S, Outcome, Simulation
from benchmarks.simulation.times import run_s
from benchmarks.simulation.trace import MIX, Arrival, poisson_trace, read_trace, write_trace
from model.spec.params import GenerationParams

CLIP = GenerationParams(distilled=True)
LONG = GenerationParams(distilled=True, num_segments=10)
GROUP = Group("group", 1)
CLIP_S = run_s(Arrival(at_s=0, request=CLIP).plan, 1)


def run(trace: list[Arrival], num_groups: int = 1, mtbf_s: float | None = None) -> list[Outcome]:
    clock = Clock()
    return Simulation(PlainQueue(clock, by_arrival), FixedGroups(num_groups, 1), clock, mtbf_s=mtbf_s).run(
        trace
    )


class TestSimulator:
    def test_one_group_runs_one_job_after_the_other(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("benchmarks.simulation.simulator.SPREAD", 0.0)
        trace = [Arrival(at_s=at_s, request=CLIP) for at_s in (0.0, 10.0, 1000.0)]
        outcomes = run(trace)
        assert [outcome.started_s for outcome in outcomes] == [0.0, pytest.approx(CLIP_S), 1000.0]
        assert outcomes[1].response_s == pytest.approx(2 * CLIP_S - 10.0)
        assert outcomes[1].gpu_s == pytest.approx(CLIP_S)

    def test_two_groups_run_two_jobs_at_a_time(self):
        outcomes = run([Arrival(at_s=0.0, request=CLIP)] * 2, num_groups=2)
        assert [outcome.started_s for outcome in outcomes] == [0.0, 0.0]


@pytest.fixture(params=["job store", "plain"])
def queue(request: pytest.FixtureRequest, redis: Redis) -> tuple[Queue, Clock]:
    clock = Clock()
    return (
        StoreQueue(redis, clock) if request.param == "job store" else PlainQueue(clock, by_arrival)
    ), clock


class TestCrash:
    def test_job_is_claimed_again_when_its_lease_has_run_out_and_was_swept(self, queue: tuple[Queue, Clock]):
        jobs, clock = queue
        jobs.submit(0, Arrival(at_s=0.0, request=CLIP))
        assert jobs.claim(GROUP) == Claim(0, 0.0)
        jobs.save_checkpoint(0, 0.5)
        jobs.stop_renewing(0)
        clock.now_s = LEASE_S - 1
        assert (jobs.sweep(), jobs.claim(GROUP)) == (Swept(), None)
        clock.now_s = LEASE_S
        assert jobs.claim(GROUP) is None
        assert jobs.sweep() == Swept(requeued=(0,))
        assert jobs.claim(GROUP) == Claim(0, 0.5)

    def test_job_goes_on_from_its_last_checkpoint(
        self, queue: tuple[Queue, Clock], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("benchmarks.simulation.simulator.SPREAD", 0.0)
        whole_s = run_s(Arrival(at_s=0, request=LONG).plan, 1)
        simulation = Simulation(queue[0], FixedGroups(3, 1), queue[1], mtbf_s=whole_s / 2, seed=0)
        [outcome] = simulation.run([Arrival(at_s=0.0, request=LONG)])
        assert (outcome.failed, outcome.num_crashes > 0) == (False, True)
        assert 0 < outcome.lost_gpu_s < outcome.num_crashes * CHECKPOINT_S
        assert outcome.gpu_s == pytest.approx(whole_s + outcome.lost_gpu_s)
        waited_s = outcome.ended_s - outcome.gpu_s
        assert outcome.num_crashes * LEASE_S <= waited_s <= outcome.num_crashes * (LEASE_S + SWEEP_S)

    def test_job_that_crashes_in_every_attempt_fails(self, redis: Redis):
        clock = Clock()
        simulation = Simulation(StoreQueue(redis, clock), FixedGroups(2, 1), clock, mtbf_s=1.0)
        [outcome] = simulation.run([Arrival(at_s=0.0, request=CLIP, deadline_s=3600.0)])
        assert (outcome.failed, outcome.num_crashes) == (True, 3)
        assert outcome.lost_gpu_s == pytest.approx(outcome.gpu_s)
        assert not outcome.deadline_met


def test_many_crashes_lose_no_job_and_are_summarised(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.simulation.__main__.MTBF_S", 600.0)
    large = run_large(seed=1, num_gpus=10, num_jobs=60)
    assert len(large.outcomes) == 60
    assert large.num_crashes > large.num_failed
    assert 0 < large.lost_s < CHECKPOINT_S


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.queue}, {policy.groups}")
def test_every_job_ends_once_and_the_result_is_always_the_same(redis: Redis, policy: Policy):
    trace = trace_at(0.95, seed=3, num_jobs=30)
    first, second = (
        [
            replace(outcome, predicted_s=None)  # predictions use a random sample of the jobs that run
            for outcome in simulate(redis, policy, trace, mtbf_s=2000.0, seed=5)
        ]
        for _ in range(2)
    )
    assert first == second
    assert sorted(outcome.arrival.at_s for outcome in first) == [arrival.at_s for arrival in trace]
    assert all(outcome.arrival.at_s <= outcome.started_s < outcome.ended_s for outcome in first)


def test_deadlines_meet_more_than_the_order_of_arrival(redis: Redis):
    trace = trace_at(0.95, seed=1, num_jobs=150)
    first_come, with_deadlines = (
        summarise(simulate(redis, policy, trace), 8)
        for policy in POLICIES
        if policy.groups == "8 of 1"
        if policy.queue in {"first come, first served", "**this service**"}
    )
    assert with_deadlines.deadlines_met > first_come.deadlines_met


def test_owners_are_served_by_their_weights(redis: Redis):
    weights = {"a": 2.0, "b": 1.0}
    trace = [Arrival(at_s=0.0, owner=owner, request=CLIP) for owner in weights for _ in range(100)]
    one_gpu = partial(FixedGroups, 1, 1)
    policy = Policy("", "", lambda redis, clock: StoreQueue(redis, clock, weights), one_gpu)
    outcomes = sorted(simulate(redis, policy, trace), key=lambda outcome: outcome.started_s)
    by_weight = fairness(outcomes[:140], weights)
    assert by_weight.in_mean_windows == by_weight.in_longest_windows < 0.1
    assert by_weight.furthest < 2
    by_number = fairness(outcomes[:140], {"a": 1.0, "b": 1.0})
    assert by_number.in_mean_windows > 0.3
    assert by_number.furthest > 20


class TestTrace:
    def test_is_read_back(self, tmp_path: Path):
        trace = poisson_trace(seed=1, num_jobs=50, mean_gap_s=10.0, owners={"a": 1.0, "b": 2.0})
        write_trace(tmp_path / "trace.jsonl", trace)
        assert read_trace(tmp_path / "trace.jsonl") == trace
        assert {arrival.owner for arrival in trace} == {"a", "b"}
        assert {arrival.deadline_s for arrival in trace} == {kind.deadline_s for kind in MIX}

    def test_trace_without_arrivals_is_refused(self, tmp_path: Path):
        (tmp_path / "trace.jsonl").write_text("\n")
        with pytest.raises(ValueError, match=r"trace.jsonl: has no arrivals"):
            read_trace(tmp_path / "trace.jsonl")

    def test_empty_lines_are_left_out(self, tmp_path: Path):
        (tmp_path / "trace.jsonl").write_text('{"at_s": 0}\n\n{"at_s": 1}\n')
        assert [arrival.at_s for arrival in read_trace(tmp_path / "trace.jsonl")] == [0, 1]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{}", "at_s"),
            ("junk", "JSON"),
            ('{"at_s": 1, "colour": "red"}', "colour"),
            ('{"at_s": 1, "request": {"num_frames": 2}}', "num_frames"),
            ('{"at_s": -1}', "at_s"),
            ('{"at_s": Infinity}', "finite"),
            ("\x00", "JSON"),
            ('{"at_s": 1}\n{"at_s": 0}', "earlier"),
        ],
    )
    def test_invalid_line_is_refused_by_number(self, tmp_path: Path, line: str, reason: str):
        (tmp_path / "trace.jsonl").write_text(f'{{"at_s": 0}}\n{line}\n')
        with pytest.raises(ValueError, match=rf"trace.jsonl:[23]: (.|\n)*{reason}"):
            read_trace(tmp_path / "trace.jsonl")
