"""The ranks of a worker are divided by need and by gain, in blocks that always fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from worker.supervisor.allocation import (
    LATE_S,
    MARGIN,
    JobInHand,
    choose_widths,
    efficiency,
    place,
    remaining_by_width,
)

CHANGE_S = 1.0
WIDTHS = (1, 2, 4, 8)


def job(
    job_id: str,
    work_s: float,
    deadline_s: float | None = None,
    width: int = 0,
    widths: tuple[int, ...] = WIDTHS,
) -> JobInHand:
    """Return a job that loses a twentieth with each doubling of its width."""
    remaining_s = {each: work_s / each * 1.05 ** each.bit_length() for each in widths}
    return JobInHand(job_id, remaining_s, deadline_s, width)


class TestWidths:
    def test_one_job_has_all_ranks(self):
        assert choose_widths([job("a", 100)], 8, CHANGE_S) == {"a": 8}

    def test_equal_jobs_share_the_ranks(self):
        jobs = [job(name, 100) for name in "abcd"]
        assert choose_widths(jobs, 8, CHANGE_S) == dict.fromkeys("abcd", 2)

    def test_new_job_takes_ranks_from_a_wide_one(self):
        assert choose_widths([job("a", 100, width=8), job("b", 100)], 8, CHANGE_S) == {"a": 4, "b": 4}

    def test_ranks_of_an_ended_job_go_to_the_others(self):
        assert choose_widths([job("a", 100, width=4)], 8, CHANGE_S) == {"a": 8}

    def test_job_that_would_be_late_takes_ranks_from_one_with_a_later_deadline(self):
        close, easy = job("close", 100, deadline_s=60, width=1), job("easy", 100, deadline_s=900, width=2)
        assert choose_widths([easy, close], 4, CHANGE_S) == {"close": 2, "easy": 2}
        new = job("new", 400, deadline_s=130)
        widths = choose_widths([job("easy", 200, deadline_s=900, width=8), new, close], 8, CHANGE_S)
        assert widths == {"close": 2, "new": 4, "easy": 2}

    def test_job_of_high_priority_loses_no_ranks_to_one_of_a_lower_priority(self):
        urgent = replace(job("urgent", 100, width=4), priority="high")
        low = replace(job("low", 100, deadline_s=120), priority="low")
        assert choose_widths([low, urgent], 4, CHANGE_S) == {"urgent": 4, "low": 0}
        also_urgent = replace(job("new", 100), priority="high")
        assert choose_widths([urgent, also_urgent], 4, CHANGE_S) == {"urgent": 2, "new": 2}
        normal = job("normal", 100, width=2)
        assert choose_widths([normal, low, urgent], 4, CHANGE_S) == {"urgent": 4, "normal": 0, "low": 0}

    def test_later_deadline_waits_if_the_earlier_ones_need_all_ranks(self):
        jobs = [job("long", 500, deadline_s=1500, width=1), job("clip", 50, deadline_s=120)]
        assert choose_widths(jobs, 1, CHANGE_S) == {"clip": 1, "long": 0}

    def test_jobs_without_deadlines_run_in_the_order_of_their_claims(self):
        jobs = [job("z", 100, width=1), job("a", 10)]
        assert choose_widths(jobs, 1, CHANGE_S) == {"z": 1, "a": 0}
        jobs = [job("any", 100, width=1), job("wanted", 100, deadline_s=900)]
        assert choose_widths(jobs, 1, CHANGE_S) == {"any": 0, "wanted": 1}

    def test_job_that_will_be_late_anyway_gets_the_least_and_comes_later(self):
        jobs = [job("lost", 1000, deadline_s=10, width=4), job("close", 100, deadline_s=30)]
        assert choose_widths(jobs, 4, CHANGE_S) == {"lost": 0, "close": 4}
        jobs = [job("lost", 1000, deadline_s=10, width=1), job("easy", 100, deadline_s=900, width=1)]
        assert choose_widths(jobs, 2, CHANGE_S) == {"lost": 1, "easy": 1}

    def test_late_job_does_not_wait_for_ever(self):
        jobs = [job("lost", 1000, deadline_s=110 - LATE_S), job("easy", 100, deadline_s=120, width=1)]
        assert choose_widths(jobs, 1, CHANGE_S) == {"lost": 1, "easy": 0}

    def test_job_that_cannot_change_keeps_its_ranks(self):
        decoding = replace(job("decoding", 5, width=4), is_fixed=True)
        jobs = [decoding, job("close", 100, deadline_s=20)]
        assert choose_widths(jobs, 8, CHANGE_S) == {"decoding": 4, "close": 4}

    def test_job_with_only_one_width_can_wait(self):
        jobs = [job("large", 900, 1500, width=8, widths=(8,)), job("clip", 50, 120)]
        assert choose_widths(jobs, 8, CHANGE_S) == {"clip": 8, "large": 0}

    def test_small_saving_is_not_worth_a_change(self):
        assert choose_widths([job("a", 5, width=4)], 8, CHANGE_S) == {"a": 4}
        assert choose_widths([job("a", 50, width=4)], 8, CHANGE_S) == {"a": 8}

    def test_job_keeps_ranks_that_others_would_use_better(self):
        jobs = [job("small", 20, width=4), job("a", 900, width=2), job("b", 900, width=2)]
        assert choose_widths(jobs, 8, CHANGE_S) == {"small": 4, "a": 2, "b": 2}

    def test_job_that_ends_just_before_its_deadline_gets_more_ranks(self):
        close = job("close", 100, deadline_s=106)  # one rank is predicted to need 105 s
        assert choose_widths([job("any", 100), close], 2, CHANGE_S) == {"close": 2, "any": 0}

    def test_cost_of_a_change_can_make_a_job_late(self):
        needed_s = job("a", 100).remaining_s[2] * (1 + MARGIN)
        deadline_s = needed_s + CHANGE_S / 2
        assert job("a", 100, deadline_s, width=2).is_in_time(2, CHANGE_S)
        assert not job("a", 100, deadline_s, width=1).is_in_time(2, CHANGE_S)

    def test_widths_that_a_job_cannot_have_are_left_out(self):
        jobs = [job("large", 100, widths=(4, 8)), job("small", 100, widths=(1, 2))]
        assert choose_widths(jobs, 8, CHANGE_S) == {"large": 4, "small": 2}

    def test_job_waits_if_no_width_that_it_can_have_is_left(self):
        jobs = [job("a", 100, widths=(8,), width=8), job("b", 100, widths=(4, 8))]
        assert choose_widths(jobs, 8, CHANGE_S) == {"a": 8, "b": 0}

    @given(st.data())
    def test_widths_are_possible_and_use_all_ranks_unless_jobs_keep_theirs(self, data: st.DataObject):
        num_ranks = data.draw(st.sampled_from([2, 4, 8, 16]))
        jobs = data.draw(_jobs(num_ranks))
        widths = choose_widths(jobs, num_ranks, CHANGE_S)
        assert widths.keys() == {each.job_id for each in jobs}
        assert all(widths[each.job_id] in (0, *each.remaining_s) for each in jobs)
        assert sum(widths.values()) <= num_ranks
        if 0 in widths.values():
            assert sum(widths.values()) == num_ranks

    @given(st.data())
    def test_widths_that_were_chosen_are_chosen_again(self, data: st.DataObject):
        jobs = [replace(each, deadline_s=None) for each in data.draw(_jobs(8))]
        widths = choose_widths(jobs, 8, CHANGE_S)
        again = [replace(each, width=widths[each.job_id]) for each in jobs]
        assert choose_widths(again, 8, CHANGE_S) == widths

    def test_steady_load_changes_widths_only_when_jobs_come_and_go(self):
        """Eight ranks, a job of 100 s each 25 s, a look every second: the widths settle."""
        remaining: dict[str, float] = {}
        widths: dict[str, int] = {}
        num_changes = 0
        for second in range(2000):
            if second % 25 == 0:
                remaining[f"job-{second}"] = 100.0
            jobs = [job(name, left_s, width=widths.get(name, 0)) for name, left_s in remaining.items()]
            chosen = choose_widths(jobs, 8, CHANGE_S)
            num_changes += sum(chosen[name] != width for name, width in widths.items() if name in chosen)
            widths = chosen
            remaining = {
                name: left_s - widths[name] / 1.05 ** widths[name].bit_length()
                for name, left_s in remaining.items()
                if left_s > widths[name]
            }
        assert len(remaining) <= 2
        assert num_changes <= 2 * 2000 / 25


@st.composite
def _jobs(draw: st.DrawFn, num_ranks: int) -> list[JobInHand]:
    """Return jobs that can run on one rank, with present widths that fit."""
    powers = [1 << exponent for exponent in range(num_ranks.bit_length())]
    jobs: list[JobInHand] = []
    for number in range(draw(st.integers(0, num_ranks))):
        left = num_ranks - sum(each.width for each in jobs)
        width = draw(st.sampled_from([0, *(power for power in powers if power <= left)]))
        deadline_s = draw(st.none() | st.floats(-100, 1000))
        jobs.append(job(str(number), draw(st.floats(0.1, 600)), deadline_s, width, tuple(powers)))
    return jobs


class TestRemaining:
    def test_of_other_widths_follows_from_a_measured_one(self):
        remaining_s = remaining_by_width({2: 100.0}, WIDTHS, guided=False)
        assert remaining_s == pytest.approx(
            {1: 100 * 2 * 0.96, 2: 100.0, 4: 100 * 2 * 0.96 / (4 * 0.92), 8: 100 * 2 * 0.96 / (8 * 0.86)}
        )

    def test_of_measured_widths_is_what_was_measured(self):
        remaining_s = remaining_by_width({1: 100.0, 8: 20.0}, WIDTHS, guided=False)
        assert (remaining_s[1], remaining_s[8]) == (100.0, 20.0)
        assert remaining_s[4] == pytest.approx(20 * 8 * 0.86 / (4 * 0.92))  # from 8, which is nearer

    def test_of_a_job_with_guidance_has_the_efficiency_of_half_the_width(self):
        assert remaining_by_width({1: 100.0}, [2], guided=True) == {2: 50.0}
        assert remaining_by_width({1: 100.0}, [2], guided=False) == {2: pytest.approx(50.0 / 0.96)}

    def test_guidance_loses_less_because_each_half_has_a_pass(self):
        assert efficiency(1, guided=True) == efficiency(2, guided=True) == 1.0
        assert efficiency(8, guided=True) == efficiency(4, guided=False) > efficiency(8, guided=False)


class TestPlace:
    def test_blocks_that_fit_stay(self):
        present = {"a": range(2, 4), "b": range(4, 8)}
        assert place({"a": 2, "b": 4, "c": 2}, present, 8) == {**present, "c": range(2)}

    def test_narrower_job_stays_within_its_block(self):
        assert place({"a": 2, "b": 4}, {"a": range(4, 8)}, 8) == {"a": range(4, 6), "b": range(4)}

    def test_wider_job_grows_around_its_block(self):
        assert place({"a": 4}, {"a": range(6, 8)}, 8) == {"a": range(4, 8)}

    def test_as_few_jobs_as_possible_move(self):
        present = {"a": range(1), "b": range(4, 5), "c": range(5, 6)}
        blocks = place({"a": 1, "b": 1, "c": 1, "wide": 4}, present, 8)
        assert blocks["wide"] == range(4)
        assert (blocks["b"], blocks["c"]) == (present["b"], present["c"])

    def test_waiting_job_has_no_block(self):
        assert place({"a": 0, "b": 8}, {"a": range(8)}, 8) == {"b": range(8)}

    def test_more_ranks_than_there_are_are_refused(self):
        with pytest.raises(ValueError, match="more than 4"):
            place({"a": 4, "b": 1}, {}, 4)

    @given(st.data())
    def test_all_widths_that_fit_in_number_fit_in_aligned_blocks(self, data: st.DataObject):
        num_ranks = data.draw(st.sampled_from([2, 4, 8, 16]))
        present = place(data.draw(_widths(num_ranks)), {}, num_ranks)
        widths = data.draw(_widths(num_ranks))
        blocks = place(widths, present, num_ranks)
        assert {job_id: len(block) for job_id, block in blocks.items()} == {
            job_id: width for job_id, width in widths.items() if width
        }
        assert all(block.start % len(block) == 0 and block.stop <= num_ranks for block in blocks.values())
        by_start = sorted(blocks.values(), key=lambda block: block.start)
        assert all(block.stop <= following.start for block, following in pairwise(by_start))

    @given(st.data())
    def test_nothing_moves_if_no_width_changes(self, data: st.DataObject):
        widths = data.draw(_widths(8))
        present = place(widths, {}, 8)
        assert place(widths, present, 8) == present


@st.composite
def _widths(draw: st.DrawFn, num_ranks: int) -> Mapping[str, int]:
    widths: dict[str, int] = {}
    while (left := num_ranks - sum(widths.values())) and draw(st.integers(0, 9)):
        powers = [1 << exponent for exponent in range(left.bit_length())]
        widths[str(len(widths))] = draw(st.sampled_from([0, *powers]))
    return widths


def test_fixed_job_stays_if_another_can_move():
    present = {"b": range(1, 2), "c": range(2, 3)}
    blocks = place({"b": 1, "c": 1, "new": 2}, present, 4, fixed=["b"])
    assert blocks == {"b": range(1, 2), "new": range(2, 4), "c": range(1)}
    assert place({"b": 1, "c": 1, "new": 2}, present, 4, fixed=["c"])["c"] == range(2, 3)
