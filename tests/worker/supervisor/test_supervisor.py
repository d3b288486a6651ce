"""The supervisor takes the right decision after each event."""

from __future__ import annotations

import threading

import pytest

from jobs.record import JobError, Progress
from tests.waiting import wait_until
from tests.worker.supervisor.fakes import CAPABILITY, CHECKPOINT, READY, VIDEO, FakeSupervisor
from worker.messages import (
    JOB_ERROR,
    PROTOCOL_VERSION,
    CheckpointSaved,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobPaused,
    JobStarted,
    JobStopped,
    LastDecode,
    ProgressReport,
    StageDone,
    StopJob,
    VideoDone,
)
from worker.supervisor import supervisor as supervisor_module
from worker.supervisor.events import DrainRequested, GroupMessage, StopRequested
from worker.supervisor.heartbeat import PublishedStatus
from worker.supervisor.job import ClaimedJob, Completed, Failed, Requeued, Stopped
from worker.supervisor.states import GpuGroupState, JobState, SupervisorState
from worker.supervisor.threads import StoppableThread
from worker.telemetry import Interval

ERROR = JobError(code="out_of_memory", message="too large", retryable=False)


@pytest.fixture
def fake() -> FakeSupervisor:
    """Return a supervisor whose group is ready."""
    fake = FakeSupervisor()
    fake.bring_up()
    return fake


def test_width_that_the_leader_reports_is_kept(fake):
    job = fake.run_job()
    assert job.num_gpus is None
    fake.receive(JobStarted(job_id=job.job_id, width=2))
    assert job.num_gpus == 2
    fake.receive(JobPaused(job_id=job.job_id))
    assert job.num_gpus == 0


def test_job_that_pauses_in_its_last_decode_runs_again_and_the_next_one_goes_back(fake):
    first, second = run_and_claim_next(fake)
    third = fake.claim()
    fake.receive(JobPaused(job_id=first.job_id))
    assert fake.outcome(second) == Requeued(crashed=False)
    fake.fetch(third)
    assert fake.outcome(third) == Requeued(crashed=False)
    fake.receive(LastDecode(job_id=first.job_id))
    assert first.state is JobState.DECODING


def test_job_that_is_not_to_blame_for_a_failure_loses_no_attempt(fake, monkeypatch):
    innocent, guilty = fake.run_job(), None
    fake.receive(LastDecode(job_id=innocent.job_id))
    fake.receive(GpusReleased(job_id=innocent.job_id))
    guilty = fake.run_job()
    monkeypatch.setattr(fake.gpu_group, "is_to_blame", lambda job_id: job_id == guilty.job_id)
    fake.receive(None)
    assert [fake.outcome(job) for job in (innocent, guilty)] == [
        Requeued(crashed=False),
        Requeued(crashed=True),
    ]


def test_error_that_a_rank_left_ends_its_job_and_costs_another_no_attempt(fake, tmp_path):
    """The other job was writing its video."""
    innocent = fake.run_job()
    fake.receive(LastDecode(job_id=innocent.job_id))
    fake.receive(GpusReleased(job_id=innocent.job_id))
    guilty = fake.run_job()
    error = JobError(code="out_of_memory", message="too large", retryable=False)
    for job in (innocent, guilty):
        job.folder = tmp_path / job.job_id
        job.folder.mkdir()
    (guilty.folder / JOB_ERROR).write_text(error.model_dump_json())
    fake.receive(None)
    assert [fake.outcome(job) for job in (innocent, guilty)] == [Requeued(crashed=False), Failed(error)]


def test_job_fails_with_the_error_that_a_rank_left_even_if_another_one_is_to_blame(
    fake, tmp_path, monkeypatch
):
    job = fake.run_job()
    job.folder = tmp_path
    error = JobError(code="out_of_memory", message="too large", retryable=False)
    (job.folder / JOB_ERROR).write_text(error.model_dump_json())
    monkeypatch.setattr(fake.gpu_group, "is_to_blame", lambda _: False)
    fake.receive(None)
    assert fake.outcome(job) == Failed(error)


def request_stop(fake: FakeSupervisor, job: ClaimedJob, reason) -> None:
    job.stop_request = reason
    fake.supervisor.handle(StopRequested(job))


def run_and_claim_next(fake: FakeSupervisor) -> tuple[ClaimedJob, ClaimedJob]:
    """A job that is being decoded, and the next one, which waits for the GPUs."""
    first = fake.run_job()
    fake.receive(LastDecode(job_id=first.job_id))
    second = fake.claim()
    fake.fetch(second)
    assert (first.state, second.state) == (JobState.DECODING, JobState.WAITING)
    return first, second


# The GPU group


def test_ranks_of_another_protocol_version_are_stopped(caplog):
    fake = FakeSupervisor()
    fake.tick()
    fake.receive(READY.model_copy(update={"protocol_version": PROTOCOL_VERSION + 1}))
    assert not fake.gpu_group.is_ready
    assert "restart the worker" in caplog.text


def test_no_job_is_claimed_before_the_group_is_ready():
    fake = FakeSupervisor()
    fake.tick()
    assert fake.gpu_group.state is GpuGroupState.STARTING
    assert not fake.consumer.is_requested
    assert fake.heartbeat.status == PublishedStatus("starting")
    fake.tick(5.0)
    fake.receive(READY)
    assert fake.consumer.is_requested
    assert fake.heartbeat.status == PublishedStatus("ready", None, CAPABILITY)
    assert fake.heartbeat.starts_s == [5.0]


@pytest.mark.parametrize("message", [None, GroupFailed(message="rank 1 failed alone")])
def test_failed_group_requeues_its_jobs_as_crashed_and_is_replaced(fake, message):
    writing = fake.run_job()
    fake.receive(GpusReleased(job_id=writing.job_id))
    running = fake.run_job()
    failed = fake.process
    fake.receive(message)
    assert fake.outcome(writing) == fake.outcome(running) == Requeued(crashed=True)
    assert failed.is_killed
    fake.tick()
    assert fake.process is not failed
    assert not fake.consumer.is_requested


def test_failure_of_the_rank_that_failed_first_is_shown_until_the_group_is_ready(fake, caplog):
    job = fake.run_job()
    fake.process.failure = "rank 1: OutOfMemoryError: too large"
    fake.receive(GroupFailed(message="RuntimeError: Connection closed by peer"))
    fake.tick()
    assert "the GPU group is stopped: rank 1: OutOfMemoryError: too large" in caplog.text
    outcome = fake.outcome(job)
    assert isinstance(outcome, Requeued)
    assert outcome.reason == fake.heartbeat.status.failure == "rank 1: OutOfMemoryError: too large"
    fake.receive(READY)
    assert fake.heartbeat.status.failure is None


def test_group_whose_ranks_say_nothing_fails_for_the_reason_that_the_supervisor_sees(fake):
    job = fake.run_job()
    fake.process.lives = False
    fake.tick()
    outcome = fake.outcome(job)
    assert isinstance(outcome, Requeued)
    assert outcome.reason == "one of its processes died"


def test_group_that_hangs_is_replaced(fake):
    job = fake.run_job()
    for _ in range(60):
        fake.tick(1.0)
    assert fake.outcome(job) == Requeued(crashed=True)


def test_group_that_reports_progress_does_not_hang(fake):
    job = fake.run_job()
    for step in range(100):
        fake.tick(0.9)
        progress = Progress(phase="denoise", step=step, num_steps=100)
        fake.receive(ProgressReport(job_id=job.job_id, progress=progress, timings_s={}))
    assert job.state is JobState.RUNNING


def test_idle_group_never_hangs(fake):
    process = fake.process
    for _ in range(200):
        fake.tick(1.0)
    assert fake.process is process


def test_dead_process_fails_the_group(fake):
    job = fake.run_job()
    fake.process.lives = False
    fake.tick()
    assert fake.outcome(job) == Requeued(crashed=True)


def test_failed_starts_back_off_and_publish_a_broken_group():
    fake = FakeSupervisor()
    for published in ("starting", "broken"):
        fake.tick(10.0)
        fake.receive(None)
        assert fake.gpu_group.state is GpuGroupState.BACKING_OFF
        assert fake.heartbeat.status.state == published
    starts = len(fake.processes)
    fake.tick(0.1)
    assert len(fake.processes) == starts
    fake.tick(10.0)
    assert len(fake.processes) == starts + 1


def test_messages_of_an_earlier_group_are_ignored(fake):
    earlier = fake.process
    fake.receive(None)
    fake.tick()
    fake.supervisor.handle(GroupMessage(earlier, READY))
    fake.supervisor.handle(GroupMessage(earlier, None))
    assert (fake.gpu_group.state, len(fake.processes)) == (GpuGroupState.STARTING, 2)


def test_messages_about_unknown_jobs_are_ignored(fake):
    for message in (
        GpusReleased(job_id="x"),
        JobStopped(job_id="x", reason="cancel"),
        JobStarted(job_id="x"),
    ):
        fake.receive(message)
    assert (fake.finalizer.outcomes, len(fake.processes)) == ([], 1)


def test_message_out_of_order_fails_the_group(fake):
    job = fake.run_job()
    process = fake.process
    fake.receive(GpusReleased(job_id=job.job_id))
    fake.receive(LastDecode(job_id=job.job_id))
    assert process.is_killed
    assert fake.outcome(job) == Requeued(crashed=True)


def test_second_ready_message_fails_the_group(fake):
    process = fake.process
    fake.receive(READY)
    assert process.is_killed


# Running jobs


def test_running_job_is_published(fake):
    job = fake.run_job()
    assert fake.runs() == [job.job_id]
    assert fake.heartbeat.status == PublishedStatus("busy", job.job_id, CAPABILITY)
    assert not fake.consumer.is_requested


def test_progress_is_kept_with_the_job(fake):
    job = fake.run_job()
    progress = Progress(phase="denoise", step=2, num_steps=4)
    fake.receive(ProgressReport(job_id=job.job_id, progress=progress, timings_s={"denoise": 1.0}))
    assert (job.progress, job.timings_s) == (progress, {"denoise": 1.0})


def test_checkpoints_are_uploaded(fake):
    job = fake.run_job()
    fake.receive(CheckpointSaved(job_id=job.job_id, checkpoint=CHECKPOINT))
    assert fake.checkpoints.submitted == [(job, CHECKPOINT)]


def test_messages_become_stages_of_the_timeline(fake):
    job = fake.run_job()
    for progress in (Progress(phase="denoise"), Progress(phase="denoise", step=1), Progress(phase="decode")):
        fake.receive(ProgressReport(job_id=job.job_id, progress=progress, timings_s={}))
    fake.receive(GpusReleased(job_id=job.job_id))
    joined = Interval(name="join", lane="video", began_s=1.0, ended_s=2.0)
    fake.receive(StageDone(job_id=job.job_id, stage=joined))
    assert [(each.name, each.lane) for each in job.timeline.intervals] == [
        ("wait", "job"),
        ("load", "job"),
        ("step 1", "ranks"),
        ("denoise", "ranks"),
        ("decode", "ranks"),
        ("join", "video"),
    ]


def test_next_job_runs_while_a_video_is_written(fake):
    first = fake.run_job()
    fake.receive(GpusReleased(job_id=first.job_id))
    assert fake.consumer.is_requested
    second = fake.run_job()
    fake.receive(VideoDone(job_id=first.job_id, video=VIDEO, timings_s={"decode": 1.0}))
    assert fake.outcome(first) == Completed(VIDEO)
    assert first.timings_s == {"decode": 1.0}
    assert second.state is JobState.RUNNING


def test_failed_job_is_finalized_and_the_next_one_claimed(fake):
    job = fake.run_job()
    fake.receive(JobFailed(job_id=job.job_id, error=ERROR, timings_s={"encode": 1.0}))
    assert (fake.outcome(job), job.timings_s) == (Failed(ERROR), {"encode": 1.0})
    assert fake.consumer.is_requested


def test_job_that_fails_while_its_video_is_written_does_not_affect_the_next(fake):
    first = fake.run_job()
    fake.receive(GpusReleased(job_id=first.job_id))
    second = fake.run_job()
    fake.receive(JobFailed(job_id=first.job_id, error=ERROR, timings_s={}))
    assert fake.outcome(first) == Failed(ERROR)
    assert second.state is JobState.RUNNING


def test_job_that_is_being_uploaded_survives_its_group(fake):
    job = fake.run_job()
    fake.receive(GpusReleased(job_id=job.job_id))
    fake.receive(VideoDone(job_id=job.job_id, video=VIDEO, timings_s={}))
    fake.receive(None)
    assert fake.outcomes(job) == [Completed(VIDEO)]


def test_done_job_is_released(fake):
    job = fake.run_job()
    fake.receive(JobFailed(job_id=job.job_id, error=ERROR, timings_s={}))
    assert fake.lease_renewer.jobs == [job]
    fake.finish(job)
    assert (job.state, fake.supervisor.jobs, fake.lease_renewer.jobs) == (JobState.DONE, [], [])


# Claiming


def test_request_is_withdrawn_when_its_job_is_claimed(fake):
    fake.claim()
    assert not fake.consumer.is_requested


def test_too_many_unfinished_jobs_delay_the_next_claim(fake):
    first = fake.run_job()
    fake.receive(GpusReleased(job_id=first.job_id))
    second = fake.run_job()
    fake.receive(VideoDone(job_id=first.job_id, video=VIDEO, timings_s={}))
    fake.receive(GpusReleased(job_id=second.job_id))
    assert not fake.consumer.is_requested
    fake.finish(first)
    assert fake.consumer.is_requested


def test_too_many_unfinished_jobs_delay_a_claim_ahead(fake):
    first = fake.run_job()
    fake.receive(GpusReleased(job_id=first.job_id))
    second = fake.run_job()
    fake.receive(LastDecode(job_id=second.job_id))
    assert not fake.consumer.is_requested


def test_next_job_is_claimed_during_the_last_decode_and_runs_when_the_gpus_are_released(fake):
    first = fake.run_job()
    fake.receive(LastDecode(job_id=first.job_id))
    assert fake.consumer.is_requested
    second = fake.claim()
    fake.fetch(second)
    assert fake.runs() == [first.job_id]
    assert not fake.consumer.is_requested  # one job at most waits
    fake.receive(GpusReleased(job_id=first.job_id))
    assert fake.runs() == [first.job_id, second.job_id]
    assert [each.name for each in second.timeline.intervals] == ["wait", "load"]


def test_waiting_job_runs_after_a_failed_one(fake):
    first, second = run_and_claim_next(fake)
    fake.receive(JobFailed(job_id=first.job_id, error=ERROR, timings_s={}))
    assert fake.runs() == [first.job_id, second.job_id]
    assert not fake.consumer.is_requested


def test_job_that_could_not_be_fetched_is_finalized(fake):
    job = fake.claim()
    fake.fetch(job, Failed(ERROR))
    assert fake.outcome(job) == Failed(ERROR)
    assert fake.runs() == []


def test_job_claimed_while_the_group_is_down_is_requeued():
    fake = FakeSupervisor()
    job = fake.claim()
    fake.fetch(job)
    assert fake.outcome(job) == Requeued(crashed=False)


def test_second_job_claimed_while_one_runs_is_requeued(fake):
    first = fake.run_job()
    second = fake.claim()
    fake.fetch(second)
    assert fake.outcome(second) == Requeued(crashed=False)
    assert first.state is JobState.RUNNING


def test_job_that_rank_0_still_writes_is_not_run_again(fake):
    first = fake.run_job()
    fake.receive(GpusReleased(job_id=first.job_id))
    again = fake.claim(fake.new_job(first.job_id, fence=2))
    fake.fetch(again)
    assert fake.outcome(again) == Requeued(crashed=False)
    fake.receive(VideoDone(job_id=first.job_id, video=VIDEO, timings_s={}))
    assert fake.outcome(first) == Completed(VIDEO)


def test_requeued_job_can_be_claimed_again_before_it_is_done(fake):
    first = fake.run_job()
    fake.receive(JobStopped(job_id=first.job_id, reason="preempt"))
    again = fake.claim(fake.new_job(first.job_id, fence=2))
    fake.fetch(again)
    fake.finish(first)
    assert (first.state, again.state) == (JobState.DONE, JobState.RUNNING)


def test_no_job_is_claimed_without_disk_space(fake):
    fake.disk_space.is_enough = False
    fake.tick()
    assert not fake.consumer.is_requested
    assert fake.heartbeat.status == PublishedStatus("full", None, CAPABILITY)
    late = fake.claim()
    fake.fetch(late)
    assert fake.outcome(late) == Requeued(crashed=False)
    fake.disk_space.is_enough = True
    fake.tick()
    assert fake.consumer.is_requested
    assert fake.heartbeat.status == PublishedStatus("ready", None, CAPABILITY)


def test_full_disk_does_not_stop_the_running_job(fake):
    job = fake.run_job()
    fake.disk_space.is_enough = False
    fake.tick()
    assert fake.heartbeat.status == PublishedStatus("busy", job.job_id, CAPABILITY)
    assert fake.outcome(job) is None


# Stopping jobs

REASONS = ["cancel", "deadline", "preempt", "lease_lost"]


@pytest.mark.parametrize("reason", REASONS)
def test_running_job_is_asked_to_stop_and_finalized_when_it_has_stopped(fake, reason):
    job = fake.run_job()
    request_stop(fake, job, reason)
    assert fake.stops() == [StopJob(job_id=job.job_id, reason=reason)]
    assert fake.outcome(job) is None
    assert not fake.consumer.is_requested
    fake.receive(JobStopped(job_id=job.job_id, reason=reason))
    assert fake.outcome(job) == Stopped(reason)
    assert fake.consumer.is_requested


@pytest.mark.parametrize("reason", REASONS)
def test_waiting_job_stops_without_the_group(fake, reason):
    first, second = run_and_claim_next(fake)
    request_stop(fake, second, reason)
    assert fake.outcome(second) == Stopped(reason)
    fake.finish(second)
    assert fake.consumer.is_requested
    fake.receive(GpusReleased(job_id=first.job_id))
    assert (fake.runs(), fake.stops()) == ([first.job_id], [])


@pytest.mark.parametrize("reason", REASONS)
def test_job_stopped_during_its_fetch_does_not_run(fake, reason):
    job = fake.claim()
    request_stop(fake, job, reason)
    fake.fetch(job)
    assert fake.outcome(job) == Stopped(reason)
    assert fake.sent == []


@pytest.mark.parametrize("reason", REASONS)
def test_written_video_is_not_stopped(fake, reason):
    job = fake.run_job()
    fake.receive(GpusReleased(job_id=job.job_id))
    request_stop(fake, job, reason)
    assert (fake.stops(), job.state) == ([], JobState.WRITING)


def test_withdrawn_stop_request_stops_nothing(fake):
    job = fake.run_job()
    request_stop(fake, job, None)
    assert fake.stops() == []


def test_video_of_a_job_whose_lease_is_lost_is_not_stored(fake):
    job = fake.run_job()
    request_stop(fake, job, "lease_lost")
    fake.receive(GpusReleased(job_id=job.job_id))
    fake.receive(VideoDone(job_id=job.job_id, video=VIDEO, timings_s={}))
    assert fake.outcome(job) == Stopped("lease_lost")


def test_waiting_job_is_requeued_without_a_crash_if_the_group_fails(fake):
    first, second = run_and_claim_next(fake)
    fake.receive(None)
    assert fake.outcome(first) == Requeued(crashed=True)
    assert fake.outcome(second) == Requeued(crashed=False)


# Draining


def drain(fake: FakeSupervisor) -> None:
    fake.supervisor.handle(DrainRequested())


def state_of(fake: FakeSupervisor) -> SupervisorState:
    """Return the state of the supervisor, which every event may change."""
    return fake.supervisor.state


def test_drain_without_jobs_ends_once_nothing_can_be_claimed(fake):
    drain(fake)
    assert state_of(fake) is SupervisorState.DRAINING
    fake.consumer.has_ended = True
    fake.tick()
    assert state_of(fake) is SupervisorState.STOPPED


def test_drain_waits_for_a_claim_in_the_inbox(fake):
    drain(fake)
    fake.consumer.has_ended = True
    fake.inbox.put(DrainRequested())
    fake.tick()
    assert state_of(fake) is SupervisorState.DRAINING


def test_drain_stops_the_running_job_once_and_waits_until_it_is_requeued(fake):
    job = fake.run_job()
    drain(fake)
    drain(fake)
    fake.consumer.has_ended = True
    assert fake.stops() == [StopJob(job_id=job.job_id, reason="drain")]
    assert (fake.finalizer.interrupted, fake.fetcher.is_stopped) == (True, True)
    assert fake.consumer.stopping.is_set()
    fake.receive(JobStopped(job_id=job.job_id, reason="drain"))
    assert fake.outcome(job) == Stopped("drain")
    assert state_of(fake) is SupervisorState.DRAINING
    fake.finish(job)
    assert state_of(fake) is SupervisorState.STOPPED


def test_drain_does_not_replace_the_reason_of_a_stop(fake):
    job = fake.run_job()
    request_stop(fake, job, "cancel")
    drain(fake)
    assert fake.stops() == [StopJob(job_id=job.job_id, reason="cancel")]


def test_job_claimed_while_draining_is_requeued(fake):
    drain(fake)
    job = fake.claim()
    fake.fetch(job)
    assert fake.outcome(job) == Requeued(crashed=False)
    assert not fake.consumer.is_requested


def test_drain_requeues_the_waiting_job(fake):
    first, second = run_and_claim_next(fake)
    drain(fake)
    assert fake.outcome(second) == Requeued(crashed=False)
    assert fake.stops() == [StopJob(job_id=first.job_id, reason="drain")]


def test_group_that_drains_too_long_is_killed_and_its_job_requeued_without_a_crash(fake):
    job = fake.run_job()
    drain(fake)
    fake.tick(29.0)
    assert fake.outcome(job) is None
    fake.tick(1.5)
    assert state_of(fake) is SupervisorState.TERMINATING
    assert fake.outcome(job) == Requeued(crashed=False)
    assert fake.process.is_killed


def test_group_that_dies_while_draining_is_not_started_again(fake):
    job = fake.run_job()
    drain(fake)
    fake.receive(None)
    assert fake.outcome(job) == Requeued(crashed=True)
    fake.tick(10.0)
    assert len(fake.processes) == 1


def test_drain_ends_even_if_a_job_cannot_be_requeued(fake):
    fake.run_job()
    drain(fake)
    fake.tick(31.0)
    fake.tick(3.0)
    assert state_of(fake) is SupervisorState.TERMINATING
    fake.tick(2.0)
    assert state_of(fake) is SupervisorState.STOPPED


# The event loop


def test_serve_ends_its_threads_and_its_group():
    fake = FakeSupervisor(maintenance=(StoppableThread("sweep", threading.Event.wait),))
    serving = threading.Thread(target=fake.supervisor.serve)
    serving.start()
    wait_until(lambda: fake.processes)
    fake.supervisor.request_drain()
    serving.join(30)
    assert not serving.is_alive()
    assert fake.process.is_killed
    assert fake.finalizer.is_stopped
    assert not any(threading.Thread.is_alive(thread) for thread in fake.components.threads)


def test_serve_ends_though_a_thread_is_stuck(monkeypatch, caplog):
    monkeypatch.setattr(supervisor_module, "JOIN_LIMIT_S", 0.1)
    unstick = threading.Event()
    fake = FakeSupervisor(maintenance=(StoppableThread("stuck", lambda _: unstick.wait(30)),))
    fake.supervisor.request_drain()
    fake.supervisor.serve()
    assert "thread stuck did not end in time" in caplog.text
    unstick.set()


def test_serve_ends_though_a_job_is_not_finalized(monkeypatch, caplog):
    monkeypatch.setattr(supervisor_module, "JOIN_LIMIT_S", 60.0)
    fake = FakeSupervisor()
    fake.finalizer.has_ended = False
    fake.supervisor.request_drain()
    fake.supervisor.serve()
    assert fake.finalizer.joined_for_s is not None
    assert fake.finalizer.joined_for_s <= 60
    assert "some jobs are not finalized" in caplog.text


def test_serve_ends_its_threads_if_it_fails(monkeypatch):
    fake = FakeSupervisor()

    def fail(_event):
        raise ZeroDivisionError

    monkeypatch.setattr(fake.supervisor, "handle", fail)
    with pytest.raises(ZeroDivisionError):
        fake.supervisor.serve()
    assert not any(threading.Thread.is_alive(thread) for thread in fake.components.threads)
