from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.record import JobError, Progress
from model.spec.memory import MemoryBudget, Setup, memory_needed
from tests.model.spec.test_memory import RELEASED
from tests.orders import make_order
from tests.worker.examples import ORDER
from tests.worker.supervisor.fake_world import FakeWorld
from tests.worker.supervisor.fakes import CAPABILITY, VIDEO
from worker.messages import (
    JOB_ERROR,
    PROTOCOL_VERSION,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobPaused,
    JobStarted,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    RankConnected,
    Ready,
    RunJob,
    VideoDone,
)
from worker.supervisor.gpu_world import LONGEST_WAIT_S, Slot

OUT_OF_MEMORY = JobError(code="out_of_memory", message="", retryable=False)


@pytest.fixture
def world() -> FakeWorld:
    world = FakeWorld()
    world.bring_up()
    return world


def kinds(messages: Iterable[Message | None]) -> list[str]:
    return [type(message).__name__ for message in messages]


class TestBlocks:
    def test_single_job_gets_all_ranks(self, world):
        world.start(0, "a")
        assert world.runs("a") == [(0, 1, 2, 3)]
        assert world.last_run("a").width == 4

    def test_second_job_waits_until_the_first_gives_up_ranks(self, world):
        world.start(0, "a")
        second = world.start(1, "b")
        assert world.stops() == [(0, "a", "resize")]
        assert world.runs("b") == []
        world.stop_for_resize("a")
        assert world.runs("a") == [(0, 1, 2, 3), (0, 1)]
        assert world.runs("b") == [(2, 3)]
        assert world.received(second) == [JobPaused(job_id="b")]

    def test_resumed_job_has_its_checkpoint_and_times(self, world):
        world.start(0, "a")
        world.report("a", 0.2)
        world.start(1, "b")
        checkpoint = world.stop_for_resize("a")
        run = world.last_run("a")
        assert (run.resume, run.timings_s, run.width) == (checkpoint, {"denoise": 0.2}, 2)

    def test_cost_of_a_change_leaves_out_the_steps_before_and_after_it(self, world):
        world.start(0, "a")
        world.start(1, "b")
        world.now += 100  # the step that the job still does
        world.report("a", 0.1)
        world.now += 1
        world.stop_for_resize("a")
        world.now += 2
        world.report("a", 0.1)
        assert world.world._change_s == 3
        world.now += 100  # the next step
        world.report("a", 0.2)
        assert world.world._change_s == 3

    def test_supervisor_does_not_notice_a_change(self, world):
        slot = world.start(0, "a")
        world.start(1, "b")
        world.stop_for_resize("a")
        world.send(JobStarted(job_id="a", width=2))
        assert kinds(world.received(slot)) == ["CheckpointSaved", "JobPaused", "JobStarted"]

    def test_as_many_jobs_as_ranks_run_at_once(self, world):
        for number, job_id in enumerate("abcd"):
            world.start(number, job_id)
            for stopped in {job for _, job, _ in world.stops()}:
                world.stop_for_resize(stopped)
        blocks = [world.runs(job_id)[-1] for job_id in "abcd"]
        assert sorted(rank for block in blocks for rank in block) == [0, 1, 2, 3]

    def test_no_job_moves_while_the_new_blocks_need_ranks_of_a_job_in_its_last_decode(self):
        world = FakeWorld(num_ranks=8, num_slots=8)
        world.bring_up(widths=(1, 2, 4, 8))
        for number, job_id in enumerate("abcdefgh"):
            world.start(number, job_id)
            for stopped in {job for _, job, _ in world.stops()}:
                world.stop_for_resize(stopped)
        job_on = {world.runs(job_id)[-1]: job_id for job_id in "abcdefgh"}
        first, third, wide = (job_on[rank,] for rank in (0, 2, 4))
        world.report(wide, 0.1, eta_s=4000.0)
        for job_id in (first, third):
            world.send(LastDecode(job_id=job_id))

        def num_stops() -> int:
            return [job_id for _, job_id, _ in world.stops()].count(wide)

        for job_id in sorted(set("abcdefgh") - {first, third, wide}):
            before = num_stops()
            world.send(GpusReleased(job_id=job_id))
            if num_stops() > before:
                world.stop_for_resize(wide)
        assert world.runs(wide)[-1] == (4, 5, 6, 7)
        world.report(wide, 0.1, eta_s=1000.0)
        before = num_stops()
        world.start(0, "urgent", deadline_at=datetime.now(UTC) + timedelta(seconds=1500))  # needs four ranks
        assert num_stops() == before
        world.send(GpusReleased(job_id=first))
        assert num_stops() == before + 1
        world.stop_for_resize(wide)
        assert (world.runs("urgent")[-1], world.runs(wide)[-1]) == ((4, 5, 6, 7), (0, 1))

    def test_ranks_of_a_finished_job_join_the_other(self, world):
        world.start(0, "a")
        world.start(1, "b")
        world.stop_for_resize("a")
        world.report("b", 0.1)
        world.send(GpusReleased(job_id="a"))
        assert world.stops()[-1] == (2, "b", "resize")
        world.stop_for_resize("b")
        assert world.runs("b")[-1] == (0, 1, 2, 3)

    def test_job_that_ends_soon_keeps_its_ranks(self, world):
        world.start(0, "a")
        world.start(1, "b")
        world.stop_for_resize("a")
        world.report("b", 0.99, eta_s=1.0)
        world.send(GpusReleased(job_id="a"))
        assert world.stops() == [(0, "a", "resize")]

    def test_job_is_not_widened_for_less_than_a_change_costs(self, world):
        world.start(0, "a")
        world.start(1, "b")
        world.stop_for_resize("a")
        world.now += 600  # what the change costs
        world.report("a", 0.1)
        world.report("b", 0.1, eta_s=1000.0)
        world.send(GpusReleased(job_id="a"))
        assert world.stops() == [(0, "a", "resize")]

    def test_one_slow_change_does_not_decide_what_changes_cost(self, world):
        world.start(0, "a")
        for number, (job_id, cost_s) in enumerate([("b", 600.0), ("c", 1.0), ("d", 1.0)], 1):
            world.start(number, job_id)
            _, stopped, _ = world.stops()[-1]
            world.stop_for_resize(stopped)
            world.now += cost_s
            world.report(stopped, 0.1)
        assert world.world._change_s == 1

    def test_job_that_will_be_late_gets_more_ranks_when_it_reports_so(self, world):
        deadline = datetime.now(UTC) + timedelta(seconds=1000)
        world.start(0, "a", deadline_at=deadline)
        world.start(1, "b")
        world.stop_for_resize("a")
        world.report("b", 0.1)
        world.report("a", 0.1, eta_s=900.0)
        assert world.stops() == [(0, "a", "resize")]
        world.report("a", 0.2, eta_s=1500.0)
        assert world.stops() == [(0, "a", "resize"), (0, "a", "resize"), (2, "b", "resize")]

    def test_estimate_of_a_job_is_kept_while_it_has_no_ranks(self, world):
        world.start(0, "a")
        world.report("a", 0.5, eta_s=100.0)
        (job,) = world.world._jobs
        before = world.world._remaining_s(job)
        world.start(1, "b")
        world.report("a", 0.5, eta_s=100.0)
        world.stop_for_resize("a")
        assert world.world._remaining_s(job) == before

    def test_job_that_could_not_save_its_state_is_not_stopped_again_at_once(self, world):
        world.start(0, "a")
        world.start(1, "b")
        world.send(JobStopped(job_id="a", reason="resize"))  # without a checkpoint
        world.report("b", 0.1)
        world.start(2, "c")
        assert all(job_id != "a" for _, job_id, _ in world.stops()[1:])
        world.save("a", 3)
        world.start(3, "d")
        assert "a" in {job_id for _, job_id, _ in world.stops()[1:]}

    def test_job_that_waits_for_long_goes_back_to_the_queue(self, world):
        world.start(0, "a")
        world.send(LastDecode(job_id="a"))
        slot = world.start(1, "b")
        world.received(slot)
        world.now = LONGEST_WAIT_S
        slot.check(busy=True, may_start=True)
        assert world.received(slot) == []
        world.now += 1
        slot.check(busy=True, may_start=True)
        assert world.received(slot) == [JobStopped(job_id="b", reason="preempt")]
        world.send(GpusReleased(job_id="a"))
        assert world.runs("b") == []

    def test_last_decode_keeps_its_ranks(self, world):
        slot = world.start(0, "a")
        world.send(LastDecode(job_id="a"))
        world.start(1, "b")
        assert world.stops() == []
        assert world.runs("b") == []
        world.send(GpusReleased(job_id="a"))
        assert world.runs("b") == [(0, 1, 2, 3)]
        world.send(VideoDone(job_id="a", video=VIDEO, timings_s={}))
        assert kinds(world.received(slot)) == ["LastDecode", "GpusReleased", "VideoDone"]

    def test_job_that_ends_instead_of_stopping_frees_its_ranks(self, world):
        world.start(0, "a")
        world.start(1, "b")
        world.send(LastDecode(job_id="a"))
        world.send(GpusReleased(job_id="a"))
        assert world.runs("b") == [(0, 1, 2, 3)]

    def test_failed_job_frees_its_ranks_and_leaves_the_other_alone(self, world):
        slot = world.start(0, "a")
        other = world.start(1, "b")
        world.stop_for_resize("a")
        world.received(slot)
        error = JobError(code="generation_failed", message="", retryable=False)
        world.send(JobFailed(job_id="a", error=error, timings_s={}))
        assert kinds(world.received(slot)) == ["JobFailed"]
        assert kinds(world.received(other)) == ["JobPaused"]  # it waited for ranks
        world.start(2, "c")
        assert world.runs("c") == [(0, 1)]

    def test_job_that_runs_out_of_memory_resumes_in_a_wider_block(self, world):
        slot = world.start(0, "a")
        other = world.start(1, "b")
        checkpoint = world.stop_for_resize("a")
        world.received(slot)
        world.send(JobFailed(job_id="a", error=OUT_OF_MEMORY, timings_s={}))
        assert kinds(world.received(slot)) == ["JobPaused"]
        assert [job for _, job, _ in world.stops()] == ["a", "b"]  # it came first, and needs all ranks
        world.stop_for_resize("b")
        assert kinds(world.received(other))[-1] == "JobPaused"
        assert (world.runs("a")[-1], world.last_run("a").resume) == ((0, 1, 2, 3), checkpoint)
        stops = world.stops()
        world.start(2, "c")
        assert world.stops() == stops  # it never gets fewer again
        world.send(JobFailed(job_id="a", error=OUT_OF_MEMORY, timings_s={}))
        assert kinds(world.received(slot)) == ["JobFailed"]

    def test_job_that_ran_out_of_memory_waits_for_more_ranks_however_long_that_takes(self, world):
        world.start(0, "a")
        slot = world.start(1, "b")
        world.stop_for_resize("a")
        world.send(JobFailed(job_id="b", error=OUT_OF_MEMORY, timings_s={}))
        world.received(slot)
        world.now += 2 * LONGEST_WAIT_S
        slot.check(busy=True, may_start=True)
        assert kinds(world.received(slot)) == []
        world.send(GpusReleased(job_id="a"))
        assert world.runs("b")[-1] == (0, 1, 2, 3)

    @pytest.mark.parametrize("code", ["generation_failed", "disk_full"])
    def test_job_that_fails_with_another_error_is_not_tried_with_more_ranks(self, world, code):
        world.start(0, "a")
        slot = world.start(1, "b")
        world.stop_for_resize("a")
        error = JobError(code=code, message="", retryable=False)
        world.send(JobFailed(job_id="b", error=error, timings_s={}))
        assert kinds(world.received(slot))[-1] == "JobFailed"

    @pytest.mark.parametrize("reason", ["cancel", "drain"])
    def test_job_that_was_to_stop_and_runs_out_of_memory_fails(self, world, reason):
        world.start(0, "a")
        slot = world.start(1, "b")
        world.stop_for_resize("a")
        slot.stop_job("b", reason)
        world.send(JobFailed(job_id="b", error=OUT_OF_MEMORY, timings_s={}))
        assert kinds(world.received(slot))[-1] == "JobFailed"

    def test_last_decode_that_runs_out_of_memory_is_repeated_in_a_wider_block(self, world):
        world.start(0, "a")
        slot = world.start(1, "b")
        world.stop_for_resize("a")
        checkpoint = world.save("b", 49)
        failure = JobFailed(job_id="b", error=OUT_OF_MEMORY, timings_s={})
        for message in (LastDecode(job_id="b"), failure, GpusReleased(job_id="a")):
            world.send(message)
        assert (world.runs("b")[-1], world.last_run("b").resume) == ((0, 1, 2, 3), checkpoint)
        for message in (LastDecode(job_id="b"), failure):
            world.send(message)
        assert kinds(world.received(slot))[-4:] == ["LastDecode", "JobPaused", "LastDecode", "JobFailed"]

    def test_video_that_runs_out_of_memory_after_the_ranks_were_released_fails(self, world):
        world.start(0, "a")
        slot = world.start(1, "b")
        world.stop_for_resize("a")
        world.send(GpusReleased(job_id="b"))
        world.send(JobFailed(job_id="b", error=OUT_OF_MEMORY, timings_s={}))
        assert kinds(world.received(slot))[-1] == "JobFailed"

    def test_width_that_the_checkpoint_cannot_have_is_not_used(self):
        world = FakeWorld()
        world.bring_up(widths=(1, 2))
        world.start(0, "a")
        assert world.runs("a") == [(0, 1)]

    def test_job_gets_as_many_ranks_as_its_memory_needs(self):
        world = FakeWorld()
        order = make_order()
        setups = {width: Setup(width, 2, text_encoder="offload") for width in (1, 2, 4)}
        needs = {width: memory_needed(RELEASED, order.plan, setup).total for width, setup in setups.items()}
        memory = MemoryBudget(needs[2], RELEASED, setups[4])
        world.bring_up(memory=memory)
        for number, job_id in enumerate("abc"):
            world.start(number, job_id, order=order)
            for stopped in {job for _, job, _ in world.stops()}:
                world.stop_for_resize(stopped)
        assert needs[1] > needs[2]
        assert [len(world.runs(job_id)[-1]) for job_id in "ab"] == [2, 2]
        assert world.runs("c") == []  # until one of them ends

    def test_job_that_fits_with_no_width_gets_all_ranks(self):
        world = FakeWorld()
        world.bring_up(memory=MemoryBudget(1, RELEASED, Setup(4, 2)))
        world.start(0, "a")
        assert world.runs("a") == [(0, 1, 2, 3)]

    def test_running_job_waits_for_an_urgent_one(self, world):
        slot = world.start(0, "a")
        world.report("a", 0.5, eta_s=1000.0)  # 2,000 s for all of it, with all ranks
        world.received(slot)
        world.start(1, "b", deadline_at=datetime.now(UTC) + timedelta(seconds=2500))
        world.stop_for_resize("a")
        assert world.runs("b") == [(0, 1, 2, 3)]
        assert kinds(world.received(slot)) == ["CheckpointSaved", "JobPaused"]
        assert slot.check(busy=True, may_start=True) is None
        world.send(GpusReleased(job_id="b"))
        assert world.runs("a") == [(0, 1, 2, 3)] * 2

    def test_job_that_was_requeued_waits_for_the_end_of_its_earlier_run(self, world):
        world.start(0, "a")
        world.start(1, "a")
        assert len(world.runs("a")) == 1
        world.send(JobStopped(job_id="a", reason="lease_lost"))
        assert len(world.runs("a")) == 2

    def test_message_about_an_unknown_job_is_ignored(self, world):
        world.send(GpusReleased(job_id="x"))
        assert [world.received(slot) for slot in world.slots] == [[]] * 4


class TestSpareSlots:
    """Slots beyond the number of ranks."""

    @pytest.fixture
    def world(self) -> FakeWorld:
        world = FakeWorld(num_ranks=2, num_slots=4)
        world.bring_up((1, 2))
        return world

    def test_they_want_jobs_while_each_rank_has_one(self, world):
        assert [slot.wants_job for slot in world.slots] == [True, True, False, False]
        world.start(0, "a")
        assert not world.slots[2].wants_job
        world.start(1, "b")
        assert [slot.wants_job for slot in world.slots[2:]] == [True, True]
        world.stop_for_resize("a")
        world.send(GpusReleased(job_id="a"))
        assert not world.slots[2].wants_job

    def test_urgent_job_in_one_takes_a_rank_from_another(self, world):
        for number, job_id in enumerate("ab"):
            world.start(number, job_id)
        world.stop_for_resize("a")
        world.report("a", 0.1)
        world.start(2, "urgent", deadline_at=datetime.now(UTC) + timedelta(seconds=3600))
        _, stopped, reason = world.stops()[-1]
        assert reason == "resize"
        (rank,) = world.runs(stopped)[-1]
        world.stop_for_resize(stopped)
        assert world.runs("urgent") == [(rank,)]

    def test_registered_slot_is_busy_in_place_of_one(self, world):
        for number, job_id in enumerate("abc"):
            world.start(number, job_id)
        world.stop_for_resize("a")
        world.send(GpusReleased(job_id="a"))
        world.send(GpusReleased(job_id="b"))
        assert [slot.published_state(busy=False) for slot in world.slots[:2]] == ["busy", "ready"]
        world.send(GpusReleased(job_id="c"))
        assert [slot.published_state(busy=False) for slot in world.slots[:2]] == ["ready", "ready"]


class TestProgress:
    def test_fraction_does_not_decrease_when_a_job_resumes(self, world):
        slot = world.start(0, "a")
        world.report("a", 0.5)
        world.start(1, "b")
        world.stop_for_resize("a")
        for fraction in (0.4, 0.6):
            world.report("a", fraction, phase="encode" if fraction < 0.5 else "denoise")
        reports = [each for each in world.received(slot) if isinstance(each, ProgressReport)]
        assert [report.progress.fraction for report in reports] == [0.5, 0.5, 0.6]

    def test_job_that_waits_for_ranks_does_not_hang(self, world):
        world.start(0, "a")
        slot = world.start(1, "b")
        world.now += 200
        assert slot.check(busy=True, may_start=True) is None


class TestStops:
    def test_stop_goes_to_the_first_rank_of_the_block(self, world):
        world.start(0, "a")
        slot = world.start(1, "b")
        world.stop_for_resize("a")
        slot.stop_job("b", "preempt")
        assert world.stops()[-1] == (2, "b", "preempt")

    def test_cancel_between_stop_and_resume_wins(self, world):
        slot = world.start(0, "a")
        world.start(1, "b")
        slot.stop_job("a", "cancel")
        world.stop_for_resize("a")
        assert world.received(slot)[-1] == JobStopped(job_id="a", reason="cancel")
        assert len(world.runs("a")) == 1
        assert world.runs("b") == [(0, 1, 2, 3)]

    def test_job_that_is_about_to_stop_is_not_resized(self, world):
        slot = world.start(0, "a")
        slot.stop_job("a", "drain")
        world.start(1, "b")
        assert world.stops() == [(0, "a", "drain")]

    def test_job_without_ranks_stops_at_once(self, world):
        world.start(0, "a")
        slot = world.start(1, "b")
        slot.stop_job("b", "cancel")
        assert world.received(slot) == [JobPaused(job_id="b"), JobStopped(job_id="b", reason="cancel")]
        world.stop_for_resize("a")
        assert world.runs("b") == []
        assert world.runs("a")[-1] == (0, 1, 2, 3)

    def test_stop_of_an_unknown_job_is_ignored(self, world):
        slot = world.start(0, "a")
        world.start(1, "b")
        before = world.stops()
        for job_id in ("x", "b"):  # "b" is a job of another slot
            slot.stop_job(job_id, "cancel")
        assert world.stops() == before
        assert world.received(world.slots[1]) == [JobPaused(job_id="b")]


class TestFailures:
    def run_two(self, world: FakeWorld) -> tuple[Slot, Slot]:
        """Run a job on the ranks 0 and 1, and another one on 2 and 3."""
        slots = world.start(0, "a"), world.start(1, "b")
        world.stop_for_resize("a")
        for slot in slots:
            world.received(slot)
        return slots

    def test_only_the_job_of_the_lost_rank_is_to_blame(self, world):
        first, second = self.run_two(world)
        world.send(None, rank=3)
        world.send(None, rank=0)  # torchrun ended it
        assert world.received(first) == world.received(second) == [None, None]
        for slot in (first, second):
            slot.stop()
        assert (first.is_to_blame("a"), second.is_to_blame("b")) == (False, True)
        assert world.ranks.is_killed

    def test_job_whose_video_was_written_by_the_lost_rank_is_to_blame(self, world):
        slot = world.start(0, "a")
        world.send(GpusReleased(job_id="a"))
        world.send(GroupFailed(message="rank 0 failed"), rank=0)
        slot.stop()
        assert slot.is_to_blame("a")

    def test_job_whose_error_a_rank_left_is_to_blame_alone(self, world, tmp_path):
        writing = world.start(0, "a")
        world.send(GpusReleased(job_id="a"))
        running = world.start(1, "b", folder=tmp_path)
        (tmp_path / JOB_ERROR).touch()
        world.send(None, rank=0)
        for slot in (writing, running):
            slot.stop()
        assert (writing.is_to_blame("a"), running.is_to_blame("b")) == (False, True)

    @pytest.mark.parametrize("failed", [("b",), ("a", "b")])
    def test_jobs_whose_errors_ranks_left_are_to_blame_whichever_rank_is_heard_of_first(
        self, world, tmp_path, failed
    ):
        folders = {job_id: tmp_path / job_id for job_id in ("a", "b")}
        for job_id, folder in folders.items():
            folder.mkdir()
            if job_id in failed:
                (folder / JOB_ERROR).touch()
        first = world.start(0, "a", folder=folders["a"])
        second = world.start(1, "b", folder=folders["b"])
        world.stop_for_resize("a")
        world.send(None, rank=0)
        for slot in (first, second):
            slot.stop()
        assert (first.is_to_blame("a"), second.is_to_blame("b")) == ("a" in failed, True)

    def test_dead_process_tells_who_is_to_blame(self, world):
        first, second = self.run_two(world)
        world.ranks.lives, world.ranks.dead = False, [2]
        assert first.check(busy=True, may_start=True) == "one of its processes died"
        first.stop()
        assert second.check(busy=True, may_start=True) == "the ranks were stopped"
        second.stop()
        assert (first.is_to_blame("a"), second.is_to_blame("b")) == (False, True)

    def test_slow_steps_of_a_job_may_last_longer(self, world):
        slot = world.start(0, "a")
        for step in range(4):
            for _ in range(20):
                world.now += 1
                assert slot.check(busy=True, may_start=True) is None
            slot.on_progress(Progress(phase="denoise", step=step, num_steps=9))
        assert slot.watchdog.limit_s == 5 * 20

    def test_silent_job_is_to_blame(self, world):
        first, second = self.run_two(world)
        world.now += 30
        for _ in range(60):
            world.now += 1
            world.report("a", 0.1)
            first.on_progress(None)
            assert first.check(busy=True, may_start=True) is None
            if failure := second.check(busy=True, may_start=True):
                break
        assert failure == "a job sent nothing for more than 50 s"
        second.stop()
        first.stop()
        assert (first.is_to_blame("a"), second.is_to_blame("b")) == (False, True)

    def test_world_starts_again_for_all_slots(self, world):
        first, second = self.run_two(world)
        world.send(None, rank=3)
        first.stop()
        world.now += 10
        assert first.check(busy=False, may_start=True) is None
        assert len(world.starts) == 2
        assert second.check(busy=True, may_start=True) == "the ranks were stopped"
        second.stop()
        assert not world.ranks.is_killed
        assert second.is_to_blame("b")
        assert second.check(busy=False, may_start=True) is None
        assert not second.is_to_blame("b")
        assert second.process is first.process is world.ranks

    def test_jobs_of_an_earlier_start_are_not_run(self, world):
        first, second = self.run_two(world)
        first.stop()
        world.now += 10
        first.check(busy=False, may_start=True)
        second.start_job(RunJob(job_id="c", order=ORDER, folder=Path("/spool/c")))
        second.stop_job("b", "cancel")
        assert world.ranks.received == []
        assert not second.is_ready

    def test_messages_of_an_earlier_start_are_ignored(self, world):
        slot = world.start(0, "a")
        earlier = world.ranks
        slot.stop()
        world.now += 10
        slot.check(busy=False, may_start=True)
        world.on_message(earlier, GpusReleased(job_id="a"), 0)
        assert world.received(slot) == []

    def test_message_out_of_order_is_a_failure(self, world):
        slot = world.start(0, "a")
        for _ in range(2):
            world.send(GpusReleased(job_id="a"))
        assert kinds(world.received(slot)) == ["GpusReleased", "GroupFailed"]
        slot.stop()
        assert slot.is_to_blame("a")

    def test_ranks_send_no_orders(self, world):
        with pytest.raises(AssertionError, match="no rank sends"):
            world.send(RankConnected(rank=1))

    def test_world_is_not_started_by_a_supervisor_that_drains(self):
        world = FakeWorld()
        assert world.slots[0].check(busy=False, may_start=False) is None
        assert world.starts == []

    def test_failed_start_is_repeated_with_a_pause(self):
        world = FakeWorld(num_slots=2)
        first, second = world.slots
        for slot in world.slots:
            slot.check(busy=False, may_start=True)
        world.send(GroupFailed(message="bad checkpoint"))
        for slot in world.slots:
            slot.stop()
        assert first.published_state(busy=False) == "starting"
        assert second.check(busy=False, may_start=True) is None
        assert len(world.starts) == 1
        world.now += 8
        assert second.check(busy=False, may_start=True) is None
        assert len(world.starts) == 2


class TestEnd:
    def test_last_slot_that_closes_kills_the_ranks(self, world):
        *others, last = world.slots
        for slot in others:
            slot.close()
        assert not world.ranks.is_killed
        last.close()
        assert world.ranks.is_killed

    def test_slot_that_closed_does_not_stop_the_jobs_of_others(self, world):
        world.slots[3].close()
        world.start(0, "a")
        assert world.runs("a") == [(0, 1, 2, 3)]


def test_slots_show_the_state_of_the_world():
    world = FakeWorld()
    slot = world.slots[0]
    assert (slot.is_ready, slot.capability, slot.published_state(busy=False)) == (False, None, "starting")
    world.bring_up()
    world.now += 1
    assert (slot.is_ready, slot.capability, slot.start_s) == (True, CAPABILITY, 0.0)
    assert (slot.published_state(busy=False), slot.published_state(busy=True)) == ("ready", "busy")


def test_both_sides_speak_the_same_version(world):
    assert Ready(capability=CAPABILITY, pids=()).protocol_version == PROTOCOL_VERSION
