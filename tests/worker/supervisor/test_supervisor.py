"""What a supervisor does with what happens; groups and places are recorded here, real in `test_faults`."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from worker.stages import Stage

from jobs.capability import Capability
from jobs.record import JobError, Progress
from tests.waiting import wait_until
from tests.worker.examples import ORDER
from tests.worker.supervisor.backends import LocalBackends, write_checkpoint, write_video
from worker.messages import (
    CheckpointSaved,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobStarted,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    Ready,
    RunJob,
    StageDone,
    StopJob,
    VideoDone,
)
from worker.supervisor.events import GroupMessage, Inbox, JobFetched, JobFinalized, StopRequested
from worker.supervisor.job import ClaimedJob, Completed, Failed, Outcome, Requeued, Stopped
from worker.supervisor.registration import Shown
from worker.supervisor.supervisor import Components, Supervisor, SupervisorLimits

CAPABILITY = Capability(model="m", tasks=("text_to_video",), limits={}, device="cpu", dtype="float32")
READY = Ready(capability=CAPABILITY, pids=(1, 2))
ERROR = JobError(code="out_of_memory", message="too large", retryable=False)


@dataclass
class RecordedLife:
    """Follows `worker.supervisor.gpu_group.GpuGroup`, with groups that are numbers."""

    said: list[Message] = field(default_factory=list)
    group: Any = None
    is_up: bool = False
    starts: int = 0
    trouble: str | None = None

    def state(self, *, busy: bool) -> str:
        return ("busy" if busy else "ready") if self.is_up else "starting"

    def look(self, *, busy: bool, may_start: bool) -> str | None:
        if self.group is None and may_start:
            self.starts += 1
            self.group = self.starts
        trouble, self.trouble = self.trouble, None
        return trouble if self.group else None

    def came_up(self, ready: Ready) -> None:
        self.is_up = True

    def hand_over(self, run: RunJob) -> None:
        self.said.append(run)

    def heard(self, progress: Progress | None) -> None:
        """Nothing is watched."""

    def say(self, message: Message) -> None:
        self.said.append(message)

    def end(self) -> None:
        self.group, self.is_up = None, False


@dataclass
class RecordedIntake:
    """Follows `worker.supervisor.consumer.Consumer`."""

    asked: bool = False
    asks: int = 0
    is_over: bool = False

    def ask(self) -> None:
        self.asked, self.asks = True, self.asks + 1

    def withdraw(self) -> None:
        self.asked = False

    def stop(self) -> None:
        self.is_over = True


@dataclass
class Recorded:
    """The others of the crew: what they were told."""

    closed: list[tuple[ClaimedJob, Outcome]] = field(default_factory=list)
    kept: list[tuple[ClaimedJob, Any]] = field(default_factory=list)
    let_go_of: list[ClaimedJob] = field(default_factory=list)
    shown: Shown = field(default_factory=Shown)
    hurried: bool = False
    stopped: bool = False
    left: bool = False
    is_enough: bool = True

    def close(self, job: ClaimedJob, ending: Outcome) -> None:
        self.closed.append((job, ending))

    def keep(self, job: ClaimedJob, save: Any) -> None:
        self.kept.append((job, save))

    def let_go(self, job: ClaimedJob) -> None:
        self.let_go_of.append(job)

    def show(self, shown: Shown) -> None:
        self.shown = shown

    def hurry(self) -> None:
        self.hurried = True

    def stop(self) -> None:
        self.stopped = True

    def start(self) -> None:
        """Shown from here on."""

    def leave(self) -> None:
        self.left = True


class Scene:
    def __init__(self, backends: LocalBackends, drain_s: float = 30.0, last_words_s: float = 30.0) -> None:
        self.backends = backends
        self.inbox: Inbox = queue.SimpleQueue()
        self.life, self.intake, self.others = RecordedLife(), RecordedIntake(), Recorded()
        others: Any = self.others
        crew = Components(
            life=self.life,  # type: ignore[arg-type]
            intake=self.intake,  # type: ignore[arg-type]
            preparation=others,
            keeper=others,
            closer=others,
            saves=others,
            presence=others,
            room=others,
            ended=threading.Event(),
        )
        self.supervisor = Supervisor(crew, self.inbox, SupervisorLimits(2, drain_s, last_words_s))
        self.thread = threading.Thread(target=self.supervisor.serve)
        self.thread.start()

    def come_up(self) -> None:
        wait_until(lambda: self.life.group)
        self.hear(READY)
        wait_until(lambda: self.intake.asked)

    def hear(self, message: Message | None, group: Any = None) -> None:
        self.inbox.put(GroupMessage(group or self.life.group, message))

    def prepare(self) -> ClaimedJob:
        """A claimed job, ready to be handed over."""
        job = self.backends.claimed_job()
        self.intake.asked = False
        self.inbox.put(JobFetched(job, RunJob(job_id=job.job_id, order=ORDER, folder=job.folder)))
        return job

    def begin(self) -> ClaimedJob:
        """A job that the group has."""
        job = self.prepare()
        wait_until(
            lambda: any(isinstance(said, RunJob) and said.job_id == job.job_id for said in self.life.said)
        )
        self.hear(JobStarted(job_id=job.job_id))
        return job

    def wait_behind(self, first: ClaimedJob) -> ClaimedJob:
        """A job that is claimed while the group decodes another."""
        self.hear(LastDecode(job_id=first.job_id))
        wait_until(lambda: self.intake.asked)
        job = self.prepare()
        self.settle()
        return job

    def release(self, job: ClaimedJob) -> None:
        """The group is done with a job but for its film, and another is asked for."""
        self.hear(GpusReleased(job_id=job.job_id))
        wait_until(lambda: self.intake.asked)

    def runs(self) -> list[str]:
        """The jobs that the group was given."""
        return [said.job_id for said in self.life.said if isinstance(said, RunJob)]

    def film(self, job: ClaimedJob) -> None:
        self.hear(VideoDone(job_id=job.job_id, video=write_video(job.folder), timings_s={}))

    def ending(self, job: ClaimedJob) -> Outcome:
        return wait_until(lambda: next((ending for one, ending in self.others.closed if one is job), None))

    def is_closed(self, job: ClaimedJob) -> bool:
        return any(one is job for one, _ in self.others.closed)

    def settle(self) -> None:
        """Wait until all that was put into the inbox is dealt with."""
        wait_until(self.inbox.empty)
        marker = self.backends.claimed_job()
        self.inbox.put(JobFinalized(marker))
        wait_until(lambda: marker in self.others.let_go_of)

    def end(self) -> None:
        self.supervisor.end()
        for job, _ in list(self.others.closed):
            self.inbox.put(JobFinalized(job))
        self.thread.join(30)


@pytest.fixture
def scene(backends: LocalBackends):
    scene = Scene(backends, drain_s=0.3, last_words_s=0.1)
    yield scene
    if scene.thread.is_alive():
        scene.end()
    assert not scene.thread.is_alive()


def test_a_group_is_started_and_no_job_is_asked_for_before_it_is_up(scene):
    wait_until(lambda: scene.life.group)
    scene.settle()
    assert not scene.intake.asked
    assert scene.others.shown == Shown("starting")
    scene.hear(READY)
    wait_until(lambda: scene.intake.asked)
    assert scene.others.shown == Shown("ready", None, CAPABILITY)


def test_a_job_is_handed_over_and_shown(scene):
    scene.come_up()
    job = scene.begin()
    scene.settle()
    assert scene.others.shown == Shown("busy", job.job_id, CAPABILITY)
    assert not scene.intake.asked


def test_reports_are_kept_with_the_job(scene):
    scene.come_up()
    job = scene.begin()
    progress = Progress(phase="denoise", step=2, num_steps=4)
    scene.hear(ProgressReport(job_id=job.job_id, progress=progress, timings_s={"denoise": 1.0}))
    wait_until(lambda: job.progress == progress)
    assert job.timings_s == {"denoise": 1.0}


def test_a_released_group_takes_the_next_job_while_the_film_is_finished(scene):
    scene.come_up()
    first = scene.begin()
    scene.release(first)
    second = scene.begin()
    scene.film(first)
    assert isinstance(scene.ending(first), Completed)
    assert not scene.is_closed(second)


def test_too_many_films_behind_hold_up_the_next_job(scene):
    scene.come_up()
    jobs = [scene.begin()]
    scene.release(jobs[0])
    jobs.append(scene.begin())
    scene.film(jobs[0])
    scene.hear(GpusReleased(job_id=jobs[1].job_id))
    scene.settle()
    assert not scene.intake.asked
    scene.inbox.put(JobFinalized(jobs[0]))
    wait_until(lambda: scene.intake.asked)


def test_while_a_job_is_decoded_the_next_is_claimed_and_begins_when_the_group_is_released(scene):
    scene.come_up()
    first = scene.begin()
    scene.hear(LastDecode(job_id=first.job_id))
    wait_until(lambda: scene.intake.asked)
    second = scene.prepare()
    scene.settle()
    assert scene.runs() == [first.job_id]
    assert not scene.intake.asked  # one alone waits
    scene.hear(GpusReleased(job_id=first.job_id))
    wait_until(lambda: scene.runs() == [first.job_id, second.job_id])
    assert not scene.is_closed(second)
    assert [stage.name for stage in second.stages.so_far] == ["wait", "load"]


def test_a_job_that_waits_begins_however_the_one_before_ended(scene):
    scene.come_up()
    first = scene.begin()
    second = scene.wait_behind(first)
    scene.hear(JobFailed(job_id=first.job_id, error=ERROR, timings_s={}))
    wait_until(lambda: scene.runs() == [first.job_id, second.job_id])
    scene.settle()
    assert not scene.intake.asked  # the second is not yet decoded


def test_no_job_is_claimed_ahead_that_too_many_films_would_hold_up(scene):
    scene.come_up()
    first = scene.begin()
    scene.release(first)
    second = scene.begin()
    scene.hear(LastDecode(job_id=second.job_id))
    scene.settle()
    assert not scene.intake.asked


@pytest.mark.parametrize("verdict", ["cancel", "deadline", "lease_lost", "preempt"])
def test_a_job_that_waits_is_left_without_asking_the_group(scene, verdict):
    scene.come_up()
    first = scene.begin()
    second = scene.wait_behind(first)
    second.stop_request = verdict
    scene.inbox.put(StopRequested(second))
    assert scene.ending(second) == Stopped("drain" if verdict == "preempt" else verdict)
    assert not any(isinstance(said, StopJob) for said in scene.life.said)
    scene.inbox.put(JobFinalized(second))
    wait_until(lambda: scene.intake.asked)
    scene.hear(GpusReleased(job_id=first.job_id))
    scene.settle()
    assert scene.runs() == [first.job_id]


def test_a_job_that_waits_for_a_group_that_breaks_goes_back_as_it_was(scene):
    scene.come_up()
    first = scene.begin()
    second = scene.wait_behind(first)
    scene.hear(None)
    assert scene.ending(first) == Requeued(crashed=True)
    assert scene.ending(second) == Requeued(crashed=False)


def test_a_drain_gives_back_the_job_that_waits(scene):
    scene.come_up()
    first = scene.begin()
    second = scene.wait_behind(first)
    scene.supervisor.end()
    assert scene.ending(second) == Requeued(crashed=False)
    wait_until(lambda: StopJob(job_id=first.job_id, reason="drain") in scene.life.said)
    scene.hear(JobStopped(job_id=first.job_id, reason="drain"))
    assert scene.ending(first) == Stopped("drain")


def test_without_room_on_its_disk_it_takes_no_job_and_says_so(scene):
    scene.come_up()
    scene.others.is_enough = False
    wait_until(lambda: not scene.intake.asked)
    wait_until(lambda: scene.others.shown == Shown("full", None, CAPABILITY))
    late = scene.prepare()
    assert scene.ending(late) == Requeued(crashed=False)
    scene.inbox.put(JobFinalized(late))
    scene.others.is_enough = True
    wait_until(lambda: scene.intake.asked)
    assert scene.others.shown == Shown("ready", None, CAPABILITY)


def test_a_disk_that_fills_up_does_not_end_the_job_at_hand(scene):
    scene.come_up()
    job = scene.begin()
    scene.others.is_enough = False
    scene.settle()
    assert scene.others.shown == Shown("busy", job.job_id, CAPABILITY)
    assert not scene.is_closed(job)


def test_a_film_that_cannot_be_finished_fails_its_job_and_not_the_next(scene):
    scene.come_up()
    first = scene.begin()
    scene.release(first)
    second = scene.begin()
    scene.hear(JobFailed(job_id=first.job_id, error=ERROR, timings_s={}))
    assert scene.ending(first) == Failed(ERROR)
    scene.settle()
    assert not scene.is_closed(second)


def test_after_a_failed_job_the_next_is_asked_for(scene):
    scene.come_up()
    job = scene.begin()
    scene.hear(JobFailed(job_id=job.job_id, error=ERROR, timings_s={}))
    assert scene.ending(job) == Failed(ERROR)
    wait_until(lambda: scene.intake.asked)


@pytest.mark.parametrize("verdict", ["cancel", "deadline", "lease_lost"])
def test_a_verdict_is_passed_down_and_the_job_closed_when_the_group_has_left_it(scene, verdict):
    scene.come_up()
    job = scene.begin()
    job.stop_request = verdict
    scene.inbox.put(StopRequested(job))
    wait_until(lambda: StopJob(job_id=job.job_id, reason=verdict) in scene.life.said)
    assert not scene.is_closed(job)
    scene.hear(JobStopped(job_id=job.job_id, reason=verdict))
    assert scene.ending(job) == Stopped(verdict)


def test_a_job_that_makes_way_for_another_is_drained_and_the_next_one_asked_for(scene):
    scene.come_up()
    job = scene.begin()
    job.stop_request = "preempt"
    scene.inbox.put(StopRequested(job))
    wait_until(lambda: StopJob(job_id=job.job_id, reason="drain") in scene.life.said)
    assert not scene.intake.asked
    scene.hear(JobStopped(job_id=job.job_id, reason="drain"))
    assert scene.ending(job) == Stopped("drain")
    wait_until(lambda: scene.intake.asked)


def test_a_job_that_is_not_wanted_any_more_is_not_handed_over(scene):
    scene.come_up()
    job = scene.backends.claimed_job()
    job.stop_request = "cancel"
    scene.inbox.put(JobFetched(job, RunJob(job_id=job.job_id, order=ORDER, folder=job.folder)))
    assert scene.ending(job) == Stopped("cancel")
    assert scene.life.said == []


def test_a_job_that_could_not_be_prepared_ends_as_that_says(scene):
    scene.come_up()
    job = scene.backends.claimed_job()
    scene.inbox.put(JobFetched(job, Failed(ERROR)))
    assert scene.ending(job) == Failed(ERROR)


def test_a_job_that_comes_while_the_group_is_down_goes_back(scene):
    wait_until(lambda: scene.life.group)
    job = scene.prepare()
    assert scene.ending(job) == Requeued(crashed=False)


def test_a_second_job_that_comes_while_the_group_is_busy_goes_back(scene):
    scene.come_up()
    first = scene.begin()
    assert scene.ending(scene.prepare()) == Requeued(crashed=False)
    assert not scene.is_closed(first)


@pytest.mark.parametrize("message", [None, GroupFailed(message="rank 1 failed alone")])
def test_a_broken_group_gives_all_its_jobs_back_as_crashed_and_is_replaced(scene, message):
    scene.come_up()
    finishing = scene.begin()
    scene.release(finishing)
    current = scene.begin()
    scene.hear(message)
    assert scene.ending(finishing) == scene.ending(current) == Requeued(crashed=True)
    wait_until(lambda: scene.life.starts == 2)
    assert not scene.intake.asked


def test_a_group_in_trouble_is_given_up(scene):
    scene.come_up()
    job = scene.begin()
    scene.life.trouble = "it hangs"
    assert scene.ending(job) == Requeued(crashed=True)


def test_a_job_whose_film_is_being_stored_outlives_its_group(scene):
    scene.come_up()
    job = scene.begin()
    scene.hear(GpusReleased(job_id=job.job_id))
    scene.film(job)
    scene.ending(job)
    scene.hear(None)
    scene.settle()
    assert [ending for one, ending in scene.others.closed if one is job] == [
        Completed(write_video(job.folder))
    ]


def test_what_an_earlier_group_said_is_not_heard(scene):
    scene.come_up()
    scene.hear(None)
    wait_until(lambda: scene.life.starts == 2)
    scene.hear(READY, group=1)
    scene.hear(None, group=1)
    scene.settle()
    assert (scene.life.is_up, scene.life.starts) == (False, 2)


def test_a_message_about_a_job_that_is_not_here_is_no_harm(scene):
    scene.come_up()
    for message in (
        GpusReleased(job_id="x"),
        JobStopped(job_id="x", reason="cancel"),
        JobStarted(job_id="x"),
    ):
        scene.hear(message)
    scene.settle()
    assert scene.others.closed == []


def test_what_the_group_does_becomes_stages_of_the_job(scene):
    scene.come_up()
    job = scene.begin()
    for progress in (Progress(phase="denoise"), Progress(phase="denoise", step=1), Progress(phase="decode")):
        scene.hear(ProgressReport(job_id=job.job_id, progress=progress, timings_s={}))
    scene.hear(GpusReleased(job_id=job.job_id))
    joined = Stage(name="join", lane="film", began_s=1.0, ended_s=2.0)
    scene.hear(StageDone(job_id=job.job_id, stage=joined))
    scene.settle()
    names = [(stage.name, stage.lane) for stage in job.stages.so_far]
    assert names == [
        ("wait", "job"),
        ("load", "job"),
        ("step 1", "ranks"),
        ("denoise", "ranks"),
        ("decode", "ranks"),
        ("join", "film"),
    ]


def test_saves_are_passed_on(scene):
    scene.come_up()
    job = scene.begin()
    save = write_checkpoint(job.folder, 2)
    scene.hear(CheckpointSaved(job_id=job.job_id, save=save))
    wait_until(lambda: scene.others.kept == [(job, save)])


def test_what_is_over_is_let_go(scene):
    job = scene.backends.claimed_job()
    scene.inbox.put(JobFinalized(job))
    wait_until(lambda: scene.others.let_go_of == [job])


def test_a_drain_without_work_ends_at_once(scene):
    scene.come_up()
    scene.supervisor.end()
    scene.thread.join(30)
    assert (scene.life.group, scene.others.left) == (None, True)


def test_a_drain_has_the_job_saved_and_waits_until_it_is_given_back(backends):
    scene = Scene(backends, drain_s=60.0)
    scene.come_up()
    job = scene.begin()
    scene.supervisor.end()
    wait_until(lambda: StopJob(job_id=job.job_id, reason="drain") in scene.life.said)
    scene.hear(JobStopped(job_id=job.job_id, reason="drain"))
    assert scene.ending(job) == Stopped("drain")
    assert scene.thread.is_alive()
    scene.inbox.put(JobFinalized(job))
    scene.thread.join(30)
    assert not scene.thread.is_alive()


def test_a_drain_hurries_everybody_and_takes_nothing_more(backends):
    scene = Scene(backends, drain_s=60.0)
    scene.come_up()
    job = scene.begin()
    scene.supervisor.end()
    scene.supervisor.end()
    late = scene.prepare()
    assert scene.ending(late) == Requeued(crashed=False)
    assert (scene.others.hurried, scene.others.stopped, scene.intake.is_over) == (True, True, True)
    assert scene.life.said.count(StopJob(job_id=job.job_id, reason="drain")) == 1
    scene.hear(JobStopped(job_id=job.job_id, reason="drain"))
    scene.ending(job)
    scene.end()


def test_a_group_that_does_not_stop_in_time_is_killed_and_its_job_given_back_without_a_crash(scene):
    scene.come_up()
    job = scene.begin()
    scene.supervisor.end()
    assert scene.ending(job) == Requeued(crashed=False)
    assert scene.life.group is None
    scene.inbox.put(JobFinalized(job))
    scene.thread.join(30)


def test_a_group_that_dies_while_it_drains_is_not_started_again(backends):
    scene = Scene(backends, drain_s=60.0)
    scene.come_up()
    job = scene.begin()
    scene.supervisor.end()
    wait_until(lambda: len(scene.life.said) == 2)
    scene.hear(None)
    assert scene.ending(job) == Requeued(crashed=True)
    scene.inbox.put(JobFinalized(job))
    scene.thread.join(30)
    assert scene.life.starts == 1


def test_it_ends_even_if_a_job_cannot_be_given_back(scene):
    scene.come_up()
    scene.begin()
    scene.supervisor.end()
    scene.thread.join(30)
    assert not scene.thread.is_alive()
