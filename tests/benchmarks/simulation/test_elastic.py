"""Workers that divide their ranks are simulated with the allocation of the real worker, and lose no job."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from benchmarks.simulation import __main__ as program
from benchmarks.simulation.elastic import CHANGE_S, ElasticFleet, ElasticSimulation
from benchmarks.simulation.fleets import FixedGroups
from benchmarks.simulation.queues import Clock, PlainQueue, StoreQueue, by_deadline
from benchmarks.simulation.report import share, summarise
from benchmarks.simulation.simulator import Outcome, Simulation
from benchmarks.simulation.times import run_s, step_s
from benchmarks.simulation.trace import MIX, Arrival
from jobs.store.job_store import JobStore
from model.spec.params import GenerationParams

CLIP = GenerationParams(distilled=True)
LONG = GenerationParams(distilled=True, num_segments=10)


@pytest.fixture
def exact_times(monkeypatch: pytest.MonkeyPatch):
    """Let jobs take exactly as long as modelled."""
    monkeypatch.setattr("benchmarks.simulation.simulator.SPREAD", 0.0)


def simulation(num_workers: int = 1, num_ranks: int = 8, mtbf_s: float | None = None) -> ElasticSimulation:
    clock = Clock()
    fleet = ElasticFleet(num_workers, num_ranks)
    return ElasticSimulation(PlainQueue(clock, by_deadline), fleet, clock, mtbf_s=mtbf_s)


def seconds(request: GenerationParams, num_ranks: int) -> float:
    return run_s(Arrival(at_s=0, request=request).plan, num_ranks)


@pytest.mark.usefixtures("exact_times")
class TestElasticSimulation:
    def test_job_alone_has_all_ranks(self):
        run = simulation()
        [outcome] = run.run([Arrival(at_s=0.0, request=LONG)])
        assert outcome.response_s == pytest.approx(seconds(LONG, 8))
        assert outcome.gpu_s == pytest.approx(8 * seconds(LONG, 8))
        assert run.num_changes == 0

    def test_second_job_gets_ranks_of_the_first_after_its_step(self):
        run = simulation()
        outcomes = run.run([Arrival(at_s=at_s, request=LONG) for at_s in (0.0, 10.0)])
        first_s, second_s = (outcome.ended_s for outcome in outcomes)
        halves_s = 2 * (seconds(LONG, 4) * (1 - 10 / seconds(LONG, 8)))
        step = step_s(Arrival(at_s=0, request=LONG).plan, 8)
        assert 10 + halves_s / 2 < first_s < 10 + halves_s / 2 + step + 2 * CHANGE_S
        assert second_s > first_s
        assert run.num_changes == 2  # the first gives half of its ranks to the second, which has all at last

    def test_urgent_job_lets_one_wait_that_can(self):
        run = simulation(num_ranks=2)
        urgent_s = seconds(CLIP, 2)
        urgent, slow = run.run(
            [
                Arrival(at_s=0.0, request=LONG, deadline_s=1500),
                Arrival(at_s=9.0, request=CLIP, deadline_s=urgent_s + 10),  # too early for one rank
            ]
        )
        step = step_s(slow.arrival.plan, 2)
        assert urgent.ended_s < 9 + urgent_s + step
        assert slow.ended_s == pytest.approx(seconds(LONG, 2) + urgent_s + CHANGE_S)
        assert slow.gpu_s == pytest.approx(2 * (seconds(LONG, 2) + CHANGE_S))  # none while it waits

    def test_crash_of_a_worker_loses_no_job(self):
        run = simulation(num_workers=2, num_ranks=2, mtbf_s=200.0)
        trace = [Arrival(at_s=10.0 * number, request=CLIP, deadline_s=600) for number in range(30)]
        outcomes = run.run(trace)
        assert sorted(outcome.arrival.at_s for outcome in outcomes) == [arrival.at_s for arrival in trace]
        assert sum(outcome.num_crashes for outcome in outcomes) > 1
        lost_gpu_s = sum(outcome.lost_gpu_s for outcome in outcomes)
        assert 0 < lost_gpu_s < sum(outcome.gpu_s for outcome in outcomes)

    def test_jobs_go_to_the_worker_with_the_most_idle_slots(self):
        outcomes = simulation(num_workers=2, num_ranks=1).run([Arrival(at_s=0.0, request=CLIP)] * 2)
        assert [outcome.ended_s for outcome in outcomes] == [pytest.approx(seconds(CLIP, 1))] * 2

    def test_worker_holds_two_jobs_for_each_rank(self):
        outcomes = simulation(num_ranks=1).run([Arrival(at_s=0.0, request=CLIP)] * 5)
        starts = sorted(outcome.started_s for outcome in outcomes)
        ends = sorted(outcome.ended_s for outcome in outcomes)
        assert starts == [0.0, 0.0, *ends[:3]]  # as soon as a slot is free

    def test_urgent_job_does_not_wait_in_the_queue_for_the_end_of_another(self):
        slow = [Arrival(at_s=0.0, request=LONG)] * 2
        urgent = Arrival(at_s=9.0, request=CLIP, deadline_s=seconds(CLIP, 1) + 10)
        first, *others = simulation(num_ranks=2).run([*slow, urgent])
        assert first.arrival == urgent
        assert first.deadline_met
        assert all(outcome.ended_s > seconds(LONG, 1) for outcome in others)


def test_job_store_counts_the_gpu_time_that_jobs_had_ranks(redis: Redis, monkeypatch: pytest.MonkeyPatch):
    """A job in hand that waits for ranks takes none, and owners are charged what is counted."""
    monkeypatch.setattr("benchmarks.simulation.queues.RETENTION_S", 1e6)
    clock = Clock()
    run = ElasticSimulation(StoreQueue(redis, clock), ElasticFleet(1, 2), clock)
    outcomes = run.run([Arrival(at_s=0.0, request=CLIP) for _ in range(6)])
    jobs = JobStore(redis, clock=clock).client
    counted = sorted(jobs.get(str(number)).gpu_ms / 1000 for number in range(6))
    assert counted == pytest.approx(sorted(outcome.gpu_s for outcome in outcomes), abs=0.1)


def test_elastic_groups_meet_more_deadlines_than_fixed_ones():
    trace = program.trace_at(0.95, seed=2, num_jobs=400)
    clock = Clock()
    fixed = Simulation(PlainQueue(clock, by_deadline), FixedGroups(8, 1), clock).run(trace)
    elastic = simulation().run(trace)
    assert share(elastic) > share(fixed)


def test_page_has_results_of_all_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    summaries = dict.fromkeys(
        (
            program.Case(number, load, seed, 10)
            for number in range(len(program.POLICIES))
            for load in program.LOADS
            for seed in (1, 2)
        ),
        summarise(_outcomes(), program.NUM_GPUS),
    )
    assert program.policies_table(summaries, 1, 10).count("100.0 %") == 3 * len(program.POLICIES)
    assert program.seeds_table(summaries, (1, 2), 10).count("100.0 %") == 2 * 2 * len(program.COMPARED)
    assert program.details_table(summaries, 1, 10).count("| distilled clip |") == len(program.LOADS)
    assert program.totals_table(summaries, 1, 10).count("utilisation") == 1


def _outcomes() -> list[Outcome]:
    kinds = [kind.params for kind in MIX for _ in range(2)]
    return simulation().run([Arrival(at_s=0.0, request=params) for params in kinds])
