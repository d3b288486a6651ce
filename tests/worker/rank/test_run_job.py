"""A rank runs one job, with a fake engine and the real leader."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pydantic import BaseModel
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.order import Order
from jobs.record import JobError
from jobs.store.holder import StopReason
from model.pipeline.events import Event, SegmentDone, Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.state import State
from tests.disks import mounted_disk
from tests.orders import make_order
from tests.waiting import wait_until
from tests.worker.examples import ORDER
from tests.worker.fault_rank import StagedEngine
from tests.worker.rank.test_background import background_writers
from worker.digest import sha256_of
from worker.messages import (
    JOB_ERROR,
    Checkpoint,
    CheckpointSaved,
    GpusReleased,
    JobFailed,
    JobStarted,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    RunJob,
    StageDone,
    VideoDone,
    VideoFile,
)
from worker.rank.consensus import Consensus, GroupBroken, StepOutcome, combine
from worker.rank.engine import Engine, InputsRead
from worker.rank.leader import Leader
from worker.rank.model_engine import ModelEngine
from worker.rank.run_job import run_job
from worker.settings import VideoSettings

LONG = make_order(ORDER, num_segments=3, num_condition_frames=5)
NEVER_S = 3600.0
NO_MEMORY = JobError(code="out_of_memory", message="too large", retryable=False)


@pytest.fixture(scope="module")
def consensus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consensus]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield Consensus(grace_s=5.0)
    dist.destroy_process_group()


class OtherRankFails(Consensus):
    """A consensus in which another rank has a contained error at the second event."""

    events = 0

    def decide(self, outcome: StepOutcome, on_failed_alone: Callable[[], None] = lambda: None) -> StepOutcome:
        self.events += 1
        if self.events == 2:
            return StepOutcome(error=JobError(code="disk_full", message="full", retryable=True))
        return super().decide(outcome, on_failed_alone)


class RankRunner:
    """A rank that runs jobs. `stop_at` is the step (segment, step) at which a stop is requested."""

    def __init__(self, consensus: Consensus, folder: Path, checkpoint_s: float = 0.0) -> None:
        self.consensus = consensus
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.settings = VideoSettings(
            checkpoint_s=checkpoint_s, crf=18, preset="ultrafast", buffer_bytes=1 << 20
        )
        self.engine_type: Callable[[Path], Engine] = StagedEngine
        self.stop_at: tuple[int, int] | None = None
        self.reason: StopReason = "cancel"

    def run(
        self,
        order: Order = ORDER,
        resume: Checkpoint | None = None,
        timings_s: dict[str, float] | None = None,
        width: int | None = None,
    ) -> list[Message]:
        """Run a job and return all its messages. No message comes after the last one."""
        run = RunJob(
            job_id="j",
            order=order,
            folder=self.folder,
            resume=resume,
            timings_s=timings_s or {},
            width=width,
        )
        sent: queue.SimpleQueue[Message] = queue.SimpleQueue()
        others = background_writers()
        self.leader = Leader(run, sent.put, self._stop_request, self.settings, {})
        engine = self.engine_type(self.folder / "steps.log")
        run_job(run, engine, self.consensus, self.leader)
        wait_until(lambda: background_writers() <= others)
        messages = [sent.get_nowait() for _ in range(sent.qsize())]
        assert isinstance(messages[-1], VideoDone | JobFailed | JobStopped)
        return messages

    def steps(self) -> list[tuple[int, ...]]:
        """Return the steps (segment, step) that were run."""
        log = self.folder / "steps.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [tuple(map(int, line.split()[1:3])) for line in lines]

    def _stop_request(self) -> StopReason | None:
        return self.reason if self.stop_at and self.stop_at in self.steps() else None


@pytest.fixture
def rank(consensus, tmp_path) -> RankRunner:
    return RankRunner(consensus, tmp_path / "job")


@pytest.fixture
def rarely_saving_rank(consensus, tmp_path) -> RankRunner:
    return RankRunner(consensus, tmp_path / "job", checkpoint_s=NEVER_S)


def checkpoints(messages: list[Message]) -> list[Checkpoint]:
    return [message.checkpoint for message in messages if isinstance(message, CheckpointSaved)]


def result(messages: list[Message]) -> VideoFile:
    """Return the video of a job that succeeded."""
    last = messages[-1]
    assert isinstance(last, VideoDone)
    return last.video


def failure(messages: list[Message]) -> JobFailed:
    """Return the last message of a job that failed."""
    last = messages[-1]
    assert isinstance(last, JobFailed)
    return last


def reports(messages: list[Message]) -> list[ProgressReport]:
    return [message for message in messages if isinstance(message, ProgressReport)]


def types(messages: list[Message]) -> list[type[BaseModel]]:
    """Return the types of the messages, without repetitions and without those for the timeline."""
    return [kind for kind, _ in groupby(map(type, messages)) if kind is not StageDone]


def test_gpus_are_released_before_the_video_is_done(rarely_saving_rank):
    messages = [message for message in rarely_saving_rank.run() if not isinstance(message, StageDone)]
    assert types(messages) == [
        JobStarted,
        ProgressReport,
        LastDecode,
        ProgressReport,
        GpusReleased,
        VideoDone,
    ]
    assert result(messages).num_frames == ORDER.plan.num_frames


@pytest.mark.parametrize("order", [ORDER, LONG])
def test_last_decode_is_sent_when_only_the_last_frames_are_to_be_decoded(rank, order):
    plan = order.plan
    messages = rank.run(order)
    (position,) = [i for i, message in enumerate(messages) if isinstance(message, LastDecode)]
    after = [report.progress for report in reports(messages[position:])]
    assert {(progress.phase, progress.segment) for progress in after} == {("decode", plan.num_segments - 1)}
    new_frames = plan.num_frames - (plan.num_condition_frames if plan.num_segments > 1 else 0)
    chunks = -(-new_frames // 4)
    assert len(after) == 1 + chunks + 1  # phase entered, each chunk, end of the segment


def test_background_work_is_sent_with_its_times(rank):
    stages = [message.stage for message in rank.run(LONG) if isinstance(message, StageDone)]
    assert {stage.lane for stage in stages} == {"video"}
    counts = Counter(stage.name for stage in stages)
    assert counts == {"x264": 5, "x264, the rest": 3, "save": 14, "join": 1}
    times = [time for stage in stages for time in (stage.began_s, stage.ended_s)]
    assert times == sorted(times)


def test_progress_follows_the_steps(rank):
    shown = [report.progress for report in reports(rank.run())]
    assert [progress.step for progress in shown if progress.phase == "denoise"] == [0, 1, 2, 3, 4]
    assert (shown[0].phase, shown[-1].phase) == ("encode", "decode")


def test_checkpoint_is_saved_after_steps_and_segments_with_all_earlier_segments(rank):
    saved = checkpoints(rank.run(LONG))
    positions = [(checkpoint.segment, checkpoint.step) for checkpoint in saved]
    assert positions == sorted(positions)
    assert {(0, 1), (0, 4), (1, 0), (1, 4), (2, 0), (2, 4)} <= set(positions)
    assert positions[-1] == (2, 4)  # none after the last segment
    for checkpoint in saved:
        assert checkpoint.segment_files == tuple(f"segment-{i:03}.mp4" for i in range(checkpoint.segment))
        assert checkpoint.digests == {name: sha256_of(rank.folder / name) for name in checkpoint.files}


def test_checkpoint_has_the_fraction_that_a_resumed_job_begins_with(consensus, rank, tmp_path):
    messages = rank.run(LONG)
    saved = checkpoints(messages)
    fractions = [checkpoint.fraction for checkpoint in saved]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[-1] < reports(messages)[-1].progress.fraction
    resumed = reports(rank.run(LONG, saved[-1]))
    assert resumed[0].progress.fraction >= fractions[-1]


def test_checkpoint_is_saved_after_a_segment_even_if_steps_save_rarely(rarely_saving_rank):
    saved = checkpoints(rarely_saving_rank.run(LONG))
    assert [(checkpoint.segment, checkpoint.step) for checkpoint in saved] == [(1, 0), (2, 0)]


@pytest.mark.parametrize("reason", ["drain", "preempt"])
@pytest.mark.parametrize("stop_at", [(0, 1), (1, 2), (2, 3)])
def test_stopped_job_resumes_to_the_same_video(consensus, rarely_saving_rank, tmp_path, stop_at, reason):
    whole = RankRunner(consensus, tmp_path / "whole").run(LONG)
    rank = rarely_saving_rank
    rank.stop_at, rank.reason = stop_at, reason
    stopped = rank.run(LONG)
    assert stopped[-1] == JobStopped(job_id="j", reason=reason)
    checkpoint = checkpoints(stopped)[-1]
    assert (checkpoint.segment, checkpoint.step) == (stop_at[0], stop_at[1] + 1)
    rank.stop_at = None
    resumed = rank.run(LONG, checkpoint)
    assert result(resumed) == result(whole)
    assert len(rank.steps()) == 12  # no step ran twice


@pytest.mark.parametrize("reason", ["drain", "preempt"])
def test_checkpoint_is_saved_before_a_drain_or_preemption_stops_the_job(rarely_saving_rank, reason):
    rarely_saving_rank.stop_at, rarely_saving_rank.reason = (0, 2), reason
    kinds: list[type[BaseModel]] = [CheckpointSaved, JobStopped]
    assert types(rarely_saving_rank.run())[-2:] == kinds


def test_state_that_is_saved_already_is_not_written_again_before_a_drain(rank):
    """A second file of the same state has other bytes, unlike the digest in the first checkpoint."""
    rank.stop_at, rank.reason = (0, 2), "drain"
    messages = rank.run()
    assert [checkpoint.step for checkpoint in checkpoints(messages)] == [1, 2, 3]
    assert isinstance(messages[-1], JobStopped)


@pytest.mark.parametrize("reason", ["cancel", "deadline", "lease_lost"])
def test_stop_request_ends_the_job_after_the_current_step(rarely_saving_rank, reason):
    rank = rarely_saving_rank
    rank.stop_at, rank.reason = (1, 1), reason
    messages = rank.run(LONG)
    assert messages[-1] == JobStopped(job_id="j", reason=reason)
    assert rank.steps()[-1] == (1, 1)
    assert all(checkpoint.step == 0 for checkpoint in checkpoints(messages))  # none of the stopped step
    assert not (rank.folder / "part-segment.mp4").exists()


def test_failed_job_leaves_the_rank_able_to_run_the_next(rank):
    failed = failure(rank.run(make_order(ORDER, prompts=("memory=0",))))
    assert (failed.error.code, failed.timings_s.keys() >= {"denoise"}) == ("out_of_memory", True)
    assert isinstance(rank.run()[-1], VideoDone)


def test_error_on_another_rank_fails_the_job_here_as_well(consensus, tmp_path):
    messages = RankRunner(OtherRankFails(grace_s=5.0), tmp_path / "job").run()
    assert types(messages) == [JobStarted, ProgressReport, JobFailed]
    assert len(reports(messages)) == 1  # the event at which the other rank failed does not count
    assert failure(messages).error.code == "disk_full"


class BrokenDevice(StagedEngine):
    """An engine whose device shows at its next use that an error broke it."""

    def release_memory(self) -> None:
        raise RuntimeError("CUDA error: out of memory")


def test_out_of_memory_that_breaks_the_device_ends_the_rank_and_leaves_the_error_for_the_supervisor(rank):
    rank.engine_type = BrokenDevice
    with pytest.raises(RuntimeError):
        rank.run(make_order(ORDER, prompts=("memory=0",)))
    assert cause_of(rank) == "out_of_memory"


def test_unknown_error_that_breaks_the_device_leaves_the_job_to_its_next_attempt(rank):
    rank.engine_type = BrokenDevice
    with pytest.raises(RuntimeError):
        rank.run(make_order(ORDER, prompts=("raises=0",)))
    assert cause_of(rank) is None


@pytest.mark.parametrize("aftermath", ["unknown", "broken"])
def test_out_of_memory_that_breaks_the_group_is_left_for_the_supervisor(consensus, tmp_path, aftermath):
    class OtherRankBreaks(Consensus):
        def decide(self, outcome: StepOutcome, _: Callable[[], None] = lambda: None) -> StepOutcome:
            return combine([outcome, StepOutcome(error=NO_MEMORY, aftermath=aftermath)])

    rank = RankRunner(OtherRankBreaks(grace_s=5.0), tmp_path / "job")
    with pytest.raises(GroupBroken):
        rank.run()
    assert cause_of(rank) == (None if aftermath == "unknown" else "out_of_memory")


def cause_of(rank: RankRunner) -> str | None:
    """Return the code of the error that a rank left for the supervisor."""
    file = rank.folder / JOB_ERROR
    return JobError.model_validate_json(file.read_text()).code if file.exists() else None


def test_full_disk_fails_the_job_as_disk_full(rank):
    (rank.folder / "part-segment.mp4").symlink_to("/dev/full")
    failed = rank.run(make_order(ORDER, height=640, width=960))[-1]
    assert isinstance(failed, JobFailed)
    assert (failed.error.code, failed.error.retryable) == ("disk_full", True)


def test_job_whose_disk_turns_read_only_fails_as_disk_full_and_the_next_one_runs(rank):
    class Disturbed(StagedEngine):
        def _frames(self, plan, segment, seed):
            disk.make_read_only()
            return super()._frames(plan, segment, seed)

    with mounted_disk(rank.folder) as disk:
        rank.engine_type = Disturbed
        error = failure(rank.run()).error
        assert (error.code, error.message) == (
            "disk_full",
            "the worker's disk cannot take the video: Read-only file system",
        )
        disk.repair()
        rank.engine_type = StagedEngine
        assert isinstance(rank.run()[-1], VideoDone)


def test_job_ends_at_the_event_after_the_encoder_has_failed(rank):
    def has_failed() -> bool:
        try:
            rank.leader.raise_if_failed()
        except OSError:
            return True
        return False

    class WaitingEngine(StagedEngine):
        def generate(self, run: RunJob) -> Iterator[InputsRead | Event]:
            for event in super().generate(run):
                yield event
                if isinstance(event, SegmentDone):
                    wait_until(has_failed)

    (rank.folder / "part-segment.mp4").symlink_to("/dev/full")
    rank.engine_type = WaitingEngine
    messages = rank.run(LONG)
    assert failure(messages).error.code == "disk_full"
    assert {segment for segment, _ in rank.steps()} == {0}
    assert GpusReleased(job_id="j") not in messages


def test_disk_that_is_full_for_the_whole_video_fails_the_job(rank):
    (rank.folder / "part-video.mp4").symlink_to("/dev/full")
    messages = rank.run()
    assert GpusReleased(job_id="j") in messages
    assert failure(messages).error.code == "disk_full"


def test_checkpoint_that_cannot_be_saved_does_not_fail_the_job(rank):
    (rank.folder / "state-0-denoise-2.safetensors.part").mkdir()
    messages = rank.run()
    assert isinstance(messages[-1], VideoDone)
    assert [checkpoint.step for checkpoint in checkpoints(messages)] == [1, 3, 4]


@pytest.mark.parametrize(("stop_at", "saved"), [((0, 0), (0, 1)), ((0, 3), (0, 4)), ((1, 2), (1, 3))])
def test_job_stops_for_a_resize_after_a_step_and_resumes_to_the_same_video(
    rarely_saving_rank, stop_at, saved
):
    rank = rarely_saving_rank
    whole = result(rank.run(LONG))
    rank.stop_at, rank.reason = stop_at, "resize"
    (rank.folder / "steps.log").unlink()
    messages = rank.run(LONG)
    assert messages[-1] == JobStopped(job_id="j", reason="resize")
    checkpoint = checkpoints(messages)[-1]
    assert (checkpoint.segment, checkpoint.step) == saved
    rank.stop_at = None
    assert result(rank.run(LONG, checkpoint)).sha256 == whole.sha256


@pytest.mark.parametrize(
    ("step", "saved", "began_at", "stops"),
    [
        (4, 4, 0, True),
        (4, 3, 0, True),  # step 4 is repeated
        (4, 2, 0, False),  # steps 3 and 4 would be
        (1, 0, 0, False),  # there is nothing to save yet
        (4, 3, 3, False),  # step 4 would be repeated for ever
        (5, 4, 3, True),
    ],
)
def test_job_whose_steps_cannot_all_be_saved_is_resized_where_it_repeats_one_at_most(
    tmp_path, step, saved, began_at, stops
):
    resume = Checkpoint(segment=0, stage="denoise", step=began_at, state="state") if began_at else None
    run = RunJob(job_id="j", order=ORDER, folder=tmp_path, resume=resume)
    settings = VideoSettings(checkpoint_s=NEVER_S, crf=18, preset="ultrafast", buffer_bytes=1 << 20)
    leader = Leader(run, lambda _: None, lambda: "resize", settings, {})
    event = Stepped("denoise", 0, step, 8, replace(State.begin(1), step=saved))
    reason = leader.stop_request_at(event)
    leader.end(StepOutcome(stop_request="cancel"))  # ends its thread
    assert reason == ("resize" if stops else None)


def test_job_in_its_last_decode_does_not_stop_for_a_resize(rank):
    class LateRequest(StagedEngine):
        """Ask for a resize once the last step is done."""

        def _frames(self, plan, segment, seed):
            rank.stop_at, rank.reason = (0, 0), "resize"
            return super()._frames(plan, segment, seed)

    rank.engine_type = LateRequest
    assert isinstance(rank.run()[-1], VideoDone)


def test_job_stops_for_a_resize_between_two_segments(rank):
    class LateRequest(StagedEngine):
        """Ask for a resize while the first segment is decoded."""

        def _frames(self, plan, segment, seed):
            rank.stop_at, rank.reason = (0, 0), "resize"
            return super()._frames(plan, segment, seed)

    rank.engine_type = LateRequest
    messages = rank.run(LONG)
    assert messages[-1] == JobStopped(job_id="j", reason="resize")
    checkpoint = checkpoints(messages)[-1]
    assert (checkpoint.segment, checkpoint.step, len(checkpoint.segment_files)) == (1, 0, 1)


def test_leader_reports_the_width_of_the_job(rank):
    assert JobStarted(job_id="j") in rank.run()
    assert JobStarted(job_id="j", width=2) in rank.run(width=2)


def test_checkpoint_that_cannot_be_saved_does_not_prevent_a_drain(rarely_saving_rank):
    rank = rarely_saving_rank
    (rank.folder / "state-0-denoise-2.safetensors.part").mkdir()
    rank.stop_at, rank.reason = (0, 1), "drain"
    assert rank.run()[-1] == JobStopped(job_id="j", reason="drain")


def test_timings_include_earlier_attempts(rank):
    checkpoint = checkpoints(rank.run())[-1]
    assert checkpoint.timings_s["denoise"] > 0
    done = rank.run(resume=checkpoint, timings_s={"load": 5.0, "denoise": 100.0})[-1]
    assert done.timings_s["denoise"] >= 100.0
    assert done.timings_s["load"] >= 5.0


def test_job_leaves_no_file_open(rank):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        rank.run(LONG)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


class FullDevice(TorchDispatchMode):
    """Let the device run out of memory while the weights of a text encoder are moved to it."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        assert pipeline.conditioner
        self._weights = {weight.data_ptr() for weight in pipeline.conditioner.text._encoder.parameters()}
        self._free_moves = len(self._weights) // 2

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "aten::_to_copy" and args[0].data_ptr() in self._weights:
            self._free_moves -= 1
            if self._free_moves < 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


def test_text_encoder_that_does_not_fit_onto_the_device_fails_only_the_job(rank, tiny_checkpoint):
    pipeline = Pipeline.load(tiny_checkpoint, torch.float32, text_encoder="offload")
    rank.engine_type = lambda _: ModelEngine(pipeline, "float32")
    with FullDevice(pipeline):
        failed = rank.run()[-1]
    assert isinstance(failed, JobFailed)
    assert (failed.error.code, failed.error.retryable) == ("out_of_memory", False)
    assert "denoise" not in failed.timings_s
    assert isinstance(rank.run()[-1], VideoDone)
