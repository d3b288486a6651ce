"""Pods start, stop and are lost as configured, and no job is lost with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from benchmarks.simulation import day
from benchmarks.simulation.__main__ import main
from benchmarks.simulation.autoscaling import POLL_S, Demand, PodAutoscaler, Rule, replicas_wanted
from benchmarks.simulation.cloud import Cloud, CloudSimulation
from benchmarks.simulation.fleets import Group, Pods
from benchmarks.simulation.queues import (
    Clock,
    PlainQueue,
    StoreQueue,
    by_arrival,
    by_deadline,
    by_default_deadline,
)
from benchmarks.simulation.times import run_s
from benchmarks.simulation.trace import DAY_S, Arrival, daily_share, day_trace, write_trace
from model.spec.params import GenerationParams

LONG = GenerationParams(distilled=True, num_segments=10)
CLIP = GenerationParams(distilled=True)
LONG_S = run_s(Arrival(at_s=0, request=LONG).plan, 1)
CLIP_S = run_s(Arrival(at_s=0, request=CLIP).plan, 1)
STEADY = Cloud(cold_start_s=(300.0, 300.0))


@pytest.fixture(autouse=True)
def _exact_run_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.simulation.simulator.SPREAD", 0.0)


def simulation(rule: Rule = replicas_wanted, cloud: Cloud = STEADY, num_pods: int = 0) -> CloudSimulation:
    clock = Clock()
    autoscaler = PodAutoscaler(rule, min_pods=num_pods)
    return CloudSimulation(PlainQueue(clock, by_arrival), clock, autoscaler, cloud, num_pods=num_pods)


def test_pool_starts_from_zero_for_a_job_and_goes_back_to_zero():
    run = simulation()
    [outcome] = run.run([Arrival(at_s=1000.0, request=CLIP)])
    assert outcome.started_s == 1005.0 + 300.0  # polled every 15 s
    assert run.num_from_zero == 1
    last_s = max(sample.at_s for sample in run.samples if sample.num_pods)
    assert outcome.ended_s + 600.0 - POLL_S < last_s < outcome.ended_s + 600.0 + POLL_S
    assert run.gpu_s == last_s - 1005.0
    assert run.samples[-1].at_s == DAY_S


def test_job_of_a_busy_pod_that_is_removed_goes_on_in_another_one():
    def rule(demand: Demand) -> tuple[float]:
        return (2.0 if run.samples[-1].at_s < 600 else 1.0,)

    run = simulation(rule)
    outcomes = run.run([Arrival(at_s=0.0, request=LONG)] * 2 + [Arrival(at_s=100.0, request=LONG)] * 2)
    assert run.num_drained == 1
    assert [outcome.num_crashes for outcome in outcomes] == [0] * 4
    assert [outcome.gpu_s for outcome in outcomes] == pytest.approx([LONG_S] * 4)


@pytest.mark.parametrize("unannounced", [0.0, 1.0])
def test_job_of_a_lost_machine_ends_whether_the_loss_was_announced_or_not(unannounced: float):
    run = simulation(lambda demand: (2.0,), Cloud(STEADY.cold_start_s, 1200.0, unannounced), num_pods=2)
    outcomes = run.run([Arrival(at_s=0.0, request=LONG)] * 20)
    num_crashes = sum(outcome.num_crashes for outcome in outcomes)
    assert len(outcomes) == 20
    assert run.num_lost >= max(num_crashes, run.num_drained) > 0
    assert (num_crashes > 0, run.num_drained > 0) == (unannounced == 1, unannounced == 0)
    lost_s = sum(outcome.lost_gpu_s for outcome in outcomes)
    assert sum(outcome.gpu_s for outcome in outcomes) == pytest.approx(20 * LONG_S + lost_s)
    assert (lost_s > 0) == (unannounced == 1)


def test_job_store_loses_no_job_while_pods_come_and_go(redis: Redis, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.simulation.cloud.DAY_S", 3600.0)
    clock = Clock()
    trace = [Arrival(at_s=20.0 * number, request=LONG) for number in range(20)]
    queue = StoreQueue(redis, clock)
    cloud = Cloud(lost_after_s=900.0, unannounced=0.5)
    run = CloudSimulation(queue, clock, PodAutoscaler(replicas_wanted), cloud)
    outcomes = run.run(trace)
    assert sorted(outcome.arrival.at_s for outcome in outcomes) == [arrival.at_s for arrival in trace]
    assert run.num_lost > 0
    assert max(sample.num_pods for sample in run.samples) > 1
    assert run.samples[-1].num_pods == 0


def test_backlog_of_the_job_store_is_estimated_from_recent_runs(redis: Redis):
    clock = Clock()
    queue = StoreQueue(redis, clock)
    for number in range(3):
        queue.submit(number, Arrival(at_s=0.0, request=CLIP))
    assert queue.backlog() == (3, 0.0)
    assert queue.claim(Group("group", 1)) is not None
    clock.now_s = 50.0
    queue.succeed(0)
    assert queue.backlog() == (2, 100.0)


def test_plain_queue_knows_its_backlog_and_lets_late_jobs_wait():
    clock = Clock()
    queue = PlainQueue(clock, by_deadline, by_default_deadline)
    queue.submit(0, Arrival(at_s=0.0, request=CLIP, deadline_s=60.0))
    queue.submit(1, Arrival(at_s=0.0, request=CLIP, deadline_s=600.0))
    assert queue.backlog() == (2, 2 * CLIP_S)
    clock.now_s = 30.0  # too late for the first
    order = [queue.claim(Group("group", 1)) for _ in range(3)]
    assert [claim and claim.number for claim in order] == [1, 0, None]
    assert queue.backlog() == (0, 0.0)


def test_replaced_pod_keeps_its_number():
    pods = Pods()
    first, second = pods.add(), pods.add()
    for pod in (first, second):
        pods.release(pod)
    new = pods.replace(first)
    assert (len(pods), pods.num_groups, pods.num_busy) == (2, 1, 0)
    assert first not in pods
    assert [pods.remove(), pods.remove()] == [second, new]
    assert pods.take(1) is None


def test_a_day_has_most_jobs_in_the_afternoon():
    trace = day_trace(seed=1, peak_gap_s=20.0, owners={"a": 1.0})
    around = [sum(abs(arrival.at_s - hour * 3600) < 3600 for arrival in trace) for hour in (4, 16)]
    assert 5 * around[0] < around[1]
    assert max(arrival.at_s for arrival in trace) < DAY_S
    assert [daily_share(hour * 3600.0) for hour in (4, 16)] == pytest.approx([0.0, 1.0])


def test_page_shows_every_fleet(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("cloud", "day", "trace"):
        monkeypatch.setattr(f"benchmarks.simulation.{module}.DAY_S", 3600.0)
    monkeypatch.setattr(day, "PAGE", tmp_path / "day.md")
    monkeypatch.setattr(day, "PLOT", tmp_path / "day.svg")
    day.write_page(redis, seed=1, peak=10, small_peak=4)
    page = (tmp_path / "day.md").read_text()
    for fleet in (*day.fixed_fleets(10), *day.scaled_fleets()):
        assert f"| {fleet.name} |" in page
    assert (tmp_path / "day.svg").read_text().count("<polyline") == 4


def test_command_line_sets_the_size_of_the_day(monkeypatch: pytest.MonkeyPatch):
    sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(day, "write_page", lambda redis, *given: sizes.append(given))
    monkeypatch.setattr("sys.argv", ["simulation", "--day", "--peak", "30", "--small-peak", "3"])
    main()
    assert sizes == [(1, 30, 3)]


def test_fleets_are_compared_on_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    file = tmp_path / "trace.jsonl"
    write_trace(file, [Arrival(at_s=at_s, request=CLIP) for at_s in range(3)])
    monkeypatch.setattr("sys.argv", ["simulation", "--day", "--trace", str(file)])
    main()
    table = capsys.readouterr().out
    assert "| fixed, 1 pods |" in table
    assert "| **busy + backlog / 600** |" in table


def test_trace_that_cannot_be_used_is_an_error_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    for name, reason in (("missing", "No such file"), ("empty", "has no arrivals")):
        (tmp_path / "empty").touch()
        monkeypatch.setattr("sys.argv", ["simulation", "--trace", str(tmp_path / name)])
        with pytest.raises(SystemExit):
            main()
        assert reason in capsys.readouterr().err


def test_sum_of_busy_pods_and_backlog_meets_more_deadlines_than_the_largest_of_both():
    trace = day.trace_with_peak(6, seed=1)[:400]
    both = [each for each in day.scaled_fleets() if "1800" in each.name]
    earlier, chosen = (day.run_day(day.plain_queue, fleet, trace, STEADY, seed=1) for fleet in both)
    assert chosen.summary.deadlines_met > earlier.summary.deadlines_met + 0.1
