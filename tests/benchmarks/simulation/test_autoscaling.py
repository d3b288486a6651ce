"""The autoscaler follows its rule as KEDA and a HorizontalPodAutoscaler do."""

from __future__ import annotations

import pytest

from benchmarks.simulation.autoscaling import Demand, PodAutoscaler, largest, replicas_wanted

NOTHING = Demand(num_queued=0, backlog_gpu_s=0.0, num_busy=0)


def autoscaler(*values: float, **options: float) -> PodAutoscaler:
    return PodAutoscaler(lambda demand: values, **options)  # type: ignore[arg-type]


class TestRule:
    def test_backlog_asks_for_more_pods_than_are_busy(self):
        demand = Demand(num_queued=100, backlog_gpu_s=6000.0, num_busy=20)
        assert replicas_wanted(demand, gpu_s_per_replica=600.0) == (30.0, 1.0)
        assert replicas_wanted(demand, gpu_s_per_replica=600.0, groups_per_replica=2) == (20.0, 1.0)

    def test_largest_of_both_asks_for_no_more_until_the_backlog_alone_does(self):
        demand = Demand(num_queued=100, backlog_gpu_s=6000.0, num_busy=20)
        assert max(largest(demand, gpu_s_per_replica=600.0)) == 20.0

    def test_one_pod_is_wanted_for_a_job_of_unknown_gpu_time(self):
        assert replicas_wanted(Demand(num_queued=3, backlog_gpu_s=0.0, num_busy=0)) == (0.0, 1.0)
        assert replicas_wanted(NOTHING) == (0.0, 0.0)


class TestPodAutoscaler:
    def test_wants_the_largest_of_all_triggers_rounded_up(self):
        assert autoscaler(2.1, 1.0).scale(0.0, 2, NOTHING) == 2  # within the tolerance
        assert autoscaler(2.3, 1.0).scale(0.0, 2, NOTHING) == 3

    @pytest.mark.parametrize(("num_pods", "reached"), [(1, 5), (3, 7), (10, 20), (60, 100)])
    def test_adds_four_pods_or_as_many_as_there_are(self, num_pods: int, reached: int):
        assert autoscaler(100.0).scale(0.0, num_pods, NOTHING) == reached

    def test_stays_within_its_limits(self):
        assert autoscaler(100.0, max_pods=30).scale(0.0, 29, NOTHING) == 30
        assert autoscaler(0.0, min_pods=2, stabilization_s=0.0).scale(0.0, 9, NOTHING) == 2

    def test_scales_down_to_the_most_that_was_wanted_in_the_window(self):
        wanted = [8.0]
        scaler = PodAutoscaler(lambda demand: tuple(wanted), stabilization_s=60.0)
        reached = []
        for at_s, wanted[0] in ((0.0, 8.0), (30.0, 5.0), (60.0, 2.0), (75.0, 2.0), (105.0, 2.0)):
            reached.append(scaler.scale(at_s, 8, NOTHING))
        assert reached == [8, 8, 8, 5, 2]

    def test_goes_from_zero_to_one_pod_when_a_trigger_is_active(self):
        assert autoscaler(0.0, 0.0).scale(0.0, 0, NOTHING) == 0
        assert autoscaler(0.0, 40.0).scale(0.0, 0, NOTHING) == 1
        assert autoscaler(0.0, min_pods=3).scale(0.0, 0, NOTHING) == 3

    def test_last_pod_goes_after_the_cooldown(self):
        value = [1.0]
        scaler = PodAutoscaler(lambda demand: tuple(value), cooldown_s=300.0, stabilization_s=0.0)
        assert scaler.scale(100.0, 1, NOTHING) == 1
        value[0] = 0.0
        assert [scaler.scale(at_s, 1, NOTHING) for at_s in (115.0, 399.0, 400.0)] == [1, 1, 0]
