"""One order on a rank, with a real agreement (of one) and a staged engine; the leader is recorded."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from jobs.order import Order
from tests.orders import make_order
from tests.worker.examples import ORDER
from tests.worker.fault_rank import StagedEngine
from worker.messages import (
    Checkpoint,
    CheckpointSaved,
    GpusReleased,
    JobFailed,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    RunJob,
    StageDone,
    StopReason,
    VideoDone,
)
from worker.rank.consensus import Consensus
from worker.rank.leader import Contact, Leader
from worker.rank.run_job import run_order
from worker.settings import VideoSettings

LONG = make_order(ORDER, num_segments=3, num_condition_frames=5)


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(_group) -> Consensus:
    return Consensus(grace_s=5.0)


class Job:
    """An order run by one rank; `stop_at` wishes it to be left at that step."""

    def __init__(self, ranks: Consensus, folder: Path, checkpoint_s: float = 0.0) -> None:
        self.ranks = ranks
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.settings = VideoSettings(
            checkpoint_s=checkpoint_s, crf=18, preset="ultrafast", buffer_bytes=1 << 20
        )
        self.stop_at: tuple[int, int] | None = None
        self.reason: StopReason = "cancel"

    def run(self, order: Order = ORDER, resume: Checkpoint | None = None) -> list[Message]:
        """All messages of the job, to its last word."""
        run = RunJob(job_id="j", order=order, folder=self.folder, resume=resume)
        said: queue.SimpleQueue[Message] = queue.SimpleQueue()
        part = Leader(run, Contact(said.put, self._wish), self.settings, {})
        self.engine = StagedEngine(self.folder / "steps.log")
        run_order(run, self.engine, self.ranks, part)
        messages = [said.get(timeout=30)]
        while not isinstance(messages[-1], VideoDone | JobFailed | JobStopped):
            messages.append(said.get(timeout=30))
        return messages

    def steps(self) -> list[tuple[int, int]]:
        log = self.folder / "steps.log"
        return (
            [tuple(map(int, line.split()[1:])) for line in log.read_text().splitlines()]
            if log.exists()
            else []
        )

    def _wish(self, job_id: str) -> StopReason | None:
        return self.reason if self.stop_at and self.stop_at in self.steps() else None


@pytest.fixture
def job(ranks, tmp_path) -> Job:
    return Job(ranks, tmp_path / "job")


def saves(messages: list[Message]) -> list[Checkpoint]:
    return [message.save for message in messages if isinstance(message, CheckpointSaved)]


def kinds(messages: list[Message]) -> list[str]:
    """What was said of the ranks, without repetitions of the same kind."""
    names = [type(message).__name__ for message in messages if not isinstance(message, StageDone)]
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def test_a_job_is_running_before_its_first_report_and_released_before_it_is_finished(ranks, tmp_path):
    messages = Job(ranks, tmp_path, checkpoint_s=3600).run()
    assert kinds(messages) == ["Running", "Report", "Decoding", "Report", "Released", "Finished"]
    assert messages[-1].video.num_frames == ORDER.num_frames


@pytest.mark.parametrize(("order", "count"), [(ORDER, 9), (LONG, 4)])
def test_it_is_said_when_but_the_last_frames_are_to_be_decoded(job, order, count):
    messages = job.run(order)
    (at,) = [i for i, message in enumerate(messages) if isinstance(message, LastDecode)]
    after = [message.progress for message in messages[at:] if isinstance(message, ProgressReport)]
    assert {(progress.phase, progress.segment) for progress in after} == {
        ("decode", order.plan.num_segments - 1)
    }
    assert len(after) == 2 + -(-count // 4)  # entered, each chunk, and the end of the segment


def test_what_the_backroom_does_is_told_with_its_times(job):
    stages = [message.stage for message in job.run(LONG) if isinstance(message, StageDone)]
    assert {stage.lane for stage in stages} == {"video"}
    names = [stage.name for stage in stages]
    assert Counter(names) == {"x264": 5, "x264, the rest": 3, "save": 14, "join": 1}
    times = [time for stage in stages for time in (stage.began_s, stage.ended_s)]
    assert times == sorted(times)


def test_reports_follow_the_steps(job):
    shown = [message.progress for message in job.run() if isinstance(message, ProgressReport)]
    assert [progress.step for progress in shown if progress.phase == "denoise"] == [0, 1, 2, 3, 4]
    assert (shown[0].phase, shown[-1].phase) == ("encode", "decode")


def test_it_is_saved_at_steps_and_at_segments_with_the_pieces_before(job):
    positions = [(save.segment, save.step, len(save.segment_files)) for save in saves(job.run(LONG))]
    assert positions == sorted(positions)
    assert {(0, 1, 0), (0, 4, 0), (1, 0, 1), (1, 4, 1), (2, 0, 2), (2, 4, 2)} <= set(positions)
    assert positions[-1] == (2, 4, 2)  # a whole film is not saved once more


def test_it_is_saved_at_segments_however_rarely_at_steps(ranks, tmp_path):
    job = Job(ranks, tmp_path / "job", checkpoint_s=3600)
    assert [(save.segment, save.step) for save in saves(job.run(LONG))] == [(1, 0), (2, 0)]


@pytest.mark.parametrize("stop_at", [(0, 1), (1, 2), (2, 3)])
def test_a_drained_job_goes_on_to_the_same_film(ranks, tmp_path, stop_at):
    whole = Job(ranks, tmp_path / "whole").run(LONG)
    job = Job(ranks, tmp_path / "job", checkpoint_s=3600)
    job.stop_at, job.reason = stop_at, "drain"
    messages = job.run(LONG)
    assert messages[-1] == JobStopped(job_id="j", reason="drain")
    save = saves(messages)[-1]
    assert (save.segment, save.step) == (stop_at[0], stop_at[1] + 1)
    job.stop_at = None
    resumed = job.run(LONG, save)
    assert resumed[-1].video == whole[-1].video
    assert len(job.steps()) == 12  # none was run twice


def test_a_drained_job_is_saved_before_it_is_said_to_have_stopped(job):
    job.stop_at, job.reason = (0, 2), "drain"
    assert kinds(job.run())[-2:] == ["Saved", "Stopped"]


@pytest.mark.parametrize("why", ["cancel", "deadline", "lease_lost"])
def test_a_job_is_left_at_the_boundary_after_the_wish(job, why):
    job.stop_at, job.reason = (1, 1), why
    messages = job.run(LONG)
    assert messages[-1] == JobStopped(job_id="j", reason=why)
    assert job.steps()[-1] == (1, 1)
    assert not (job.folder / "part-piece.mp4").exists()


def test_an_error_fails_the_job_and_the_next_one_runs(job):
    failed = job.run(make_order(ORDER, prompts=("memory=0",)))[-1]
    assert (failed.error.code, failed.timings_s.keys() >= {"denoise"}) == ("out_of_memory", True)
    assert isinstance(job.run()[-1], VideoDone)


def test_a_full_disk_fails_the_job_with_its_own_error(job):
    (job.folder / "part-piece.mp4").symlink_to("/dev/full")
    failed = job.run(make_order(ORDER, height=640, width=960))[-1]
    assert isinstance(failed, JobFailed)
    assert (failed.error.code, failed.error.retryable) == ("disk_full", True)


def test_a_disk_that_is_full_at_the_very_end_fails_the_job(job):
    (job.folder / "part-video.mp4").symlink_to("/dev/full")
    messages = job.run()
    assert GpusReleased(job_id="j") in messages
    assert isinstance(messages[-1], JobFailed)
    assert messages[-1].error.code == "disk_full"


def test_a_state_that_cannot_be_written_stops_no_job(job):
    (job.folder / "state-0-denoise-2.safetensors.part").mkdir()
    messages = job.run()
    assert isinstance(messages[-1], VideoDone)
    assert [save.step for save in saves(messages)] == [1, 3, 4]


def test_a_state_that_cannot_be_written_does_not_stop_a_drain(ranks, tmp_path):
    job = Job(ranks, tmp_path / "job", checkpoint_s=3600)
    (job.folder / "state-0-denoise-2.safetensors.part").mkdir()
    job.stop_at, job.reason = (0, 1), "drain"
    assert job.run()[-1] == JobStopped(job_id="j", reason="drain")


def test_timings_of_earlier_attempts_are_added(job):
    save = saves(job.run())[-1]
    assert save.timings_s["denoise"] > 0
    run = RunJob(
        job_id="j", order=ORDER, folder=job.folder, resume=save, timings_s={"load": 5.0, "denoise": 100.0}
    )
    said: queue.SimpleQueue[Message] = queue.SimpleQueue()
    run_order(run, job.engine, job.ranks, Leader(run, Contact(said.put, lambda _: None), job.settings, {}))
    while not isinstance(message := said.get(timeout=30), VideoDone):
        assert message.job_id == "j"
    assert message.timings_s["denoise"] >= 100.0
    assert message.timings_s["load"] >= 5.0


def test_nothing_of_a_job_is_kept_open(job):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        job.run(LONG)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
