"""Check the supervisor's rules for any order of events.

Hypothesis plays the consumer, the lease renewer, rank 0, the finalizer and the clock. Each step notes what
the supervisor has to do about it: the outcomes that it must hand to the finalizer, and the messages and
checkpoints that it must pass on. The invariants compare this with what its components were told. However an
example ends, a drain must bring everything to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs.record import JobError, Progress
from jobs.registration import GroupState
from jobs.store.holder import StopReason
from tests.worker.supervisor.fakes import CAPABILITY, CHECKPOINT, READY, VIDEO, FakeSupervisor
from worker.messages import (
    CheckpointSaved,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobPaused,
    JobStarted,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    RunJob,
    StageDone,
    StopJob,
    VideoDone,
)
from worker.supervisor.events import DrainRequested, GroupMessage, JobClaimed, StopRequested
from worker.supervisor.heartbeat import PublishedStatus
from worker.supervisor.job import ClaimedJob, Completed, Failed, Outcome, Requeued, Stopped
from worker.supervisor.states import ON_GPUS, WITH_GROUP, GpuGroupState, JobState, SupervisorState
from worker.telemetry import Interval

MAX_UNFINISHED = 3
DRAIN_S = 10.0
REQUEUE_S = 5.0
ERROR = JobError(code="out_of_memory", message="too large", retryable=False)
REASONS: list[StopReason] = ["cancel", "deadline", "preempt", "lease_lost"]

Check = Callable[["SupervisorMachine"], bool]


def serves(machine: SupervisorMachine) -> bool:
    return machine.fake.supervisor.state is not SupervisorState.STOPPED


def when(condition: Check) -> Callable[[Any], Any]:
    """Run a rule only while the supervisor serves and the condition holds."""
    return precondition(lambda machine: serves(machine) and condition(machine))


def is_draining(machine: SupervisorMachine) -> bool:
    return machine.fake.supervisor.state is not SupervisorState.SERVING


class SupervisorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeSupervisor(MAX_UNFINISHED, drain_s=DRAIN_S, requeue_s=REQUEUE_S)
        self.claimed: list[ClaimedJob] = []
        self.outcomes: dict[ClaimedJob, Outcome] = {}  # of each job that has to be finalized
        self.started: list[ClaimedJob] = []  # in the order in which they got the GPUs
        self.stops: list[StopJob] = []  # that the group must have been sent
        self.checkpoints: list[ClaimedJob] = []  # whose checkpoint must have been submitted
        self.drained_at: float | None = None

    # What follows from an event

    def expect(self, job: ClaimedJob, outcome: Outcome) -> None:
        """Note the outcome of a job. Without a lease there is nothing to record."""
        lost = job.stop_request == "lease_lost"
        self.outcomes[job] = Stopped("lease_lost") if lost else outcome

    def expect_end_of_group(self, *, crashed: bool) -> None:
        """Note that all jobs of the group are requeued; one that only waits for it has not crashed."""
        for job in self.in_state(*WITH_GROUP):
            self.expect(job, Requeued(crashed=crashed))
        for job in self.in_state(JobState.WAITING):
            self.expect(job, Requeued(crashed=False))

    def can_run_beside(self, jobs: Collection[ClaimedJob]) -> bool:
        """Return whether the group could run one more job, now or after the present last decode."""
        states = {job.state for job in jobs}
        return (
            self.fake.supervisor.state is SupervisorState.SERVING
            and self.fake.gpu_group.is_ready
            and self.fake.disk_space.is_enough
            and not states & {JobState.FETCHING, JobState.WAITING, JobState.RUNNING}
            and len(jobs) < MAX_UNFINISHED
        )

    def fetch(self, job: ClaimedJob, outcome: Outcome | None = None) -> None:
        """Report a fetched job, which runs, waits, stops or goes back to the queue."""
        others = [other for other in self.in_hand() if other is not job]
        is_with_group = any(other.job_id == job.job_id for other in self.in_state(*WITH_GROUP))
        if outcome:
            self.expect(job, outcome)
        elif job.stop_request:
            self.expect(job, Stopped(job.stop_request))
        elif is_with_group or not self.can_run_beside(others):
            self.expect(job, Requeued(crashed=False))
        self.fake.fetch(job, outcome)
        assert job in self.outcomes or job.state in {JobState.WAITING, JobState.RUNNING}

    def ignores(self, message: GroupMessage) -> None:
        """Assert that a message changes nothing."""
        self.fake.tick()
        group, jobs = self.fake.gpu_group, self.in_hand()
        before = group.process, group.state, [job.state for job in jobs]
        self.fake.supervisor.handle(message)
        assert (group.process, group.state, [job.state for job in jobs]) == before

    # What the parts do

    def in_hand(self) -> list[ClaimedJob]:
        return [job for job in self.claimed if job.state is not JobState.DONE]

    def in_state(self, *states: JobState) -> list[ClaimedJob]:
        return [job for job in self.claimed if job.state in states]

    def one_in(self, data: st.DataObject, *states: JobState) -> ClaimedJob:
        return self.claimed[
            self.draw_index(data, [self.claimed.index(job) for job in self.in_state(*states)])
        ]

    def draw_index(self, data: st.DataObject, indices: list[int]) -> int:
        """Draw the place of a job in `claimed`, which is shorter to print than the job."""
        return data.draw(st.sampled_from(indices), label="job")

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 4.0]))
    def tick(self, seconds: float) -> None:
        if not serves(self):
            return
        if self.fake.supervisor.state is SupervisorState.DRAINING and self.drain_is_late(seconds):
            self.expect_end_of_group(crashed=False)
        self.fake.tick(seconds)

    def drain_is_late(self, seconds: float = 0.0, limit_s: float = DRAIN_S) -> bool:
        assert self.drained_at is not None
        return self.fake.now + seconds > self.drained_at + limit_s

    @initialize(num_jobs=st.sampled_from([0, 1, 2, 3]))
    def begin(self, num_jobs: int) -> None:
        """Start from a ready group, with up to one job that is written, decoded, and waiting each.

        The states of several jobs are rare in random examples.
        """
        self.fake.bring_up()
        assert self.fake.gpu_group.is_ready
        assert self.fake.gpu_group.capability == CAPABILITY
        messages = (GpusReleased, LastDecode, None)  # for the first of three jobs, the second, the last
        for message in messages[len(messages) - num_jobs :]:
            self.fake.consumer.is_requested = False
            self.claimed.append(self.fake.new_job())
            self.fake.claim(self.claimed[-1])
            self.fetch(self.claimed[-1])
            if message is not None:
                self.fake.receive(message(job_id=self.claimed[-1].job_id))

    @rule()
    @when(lambda machine: machine.fake.gpu_group.state is GpuGroupState.STARTING)
    def group_becomes_ready(self) -> None:
        self.fake.receive(READY)
        assert self.fake.gpu_group.is_ready

    @rule(failure=st.sampled_from(["connection closed", "rank died", "message", "out of order"]))
    @when(lambda machine: machine.fake.gpu_group.process is not None)
    def group_fails(self, failure: str) -> None:
        self.expect_end_of_group(crashed=True)
        process, writing = self.fake.process, self.in_state(JobState.WRITING)
        match failure:
            case "rank died":
                process.lives = False
                self.fake.tick()
            case "message":
                self.fake.receive(GroupFailed(message=failure))
            case "out of order" if writing:
                self.fake.receive(LastDecode(job_id=writing[0].job_id))
            case "out of order" if self.fake.gpu_group.is_ready:
                self.fake.receive(READY)
            case _:
                self.fake.receive(None)
        assert process.is_killed

    @rule()
    @when(lambda machine: not is_draining(machine) and machine.fake.gpu_group.is_ready)
    def group_is_silent(self) -> None:
        """A busy group fails after `stall_s`; an idle one may be silent for any time."""
        process, is_busy = self.fake.process, bool(self.in_state(*WITH_GROUP))
        if is_busy:
            self.expect_end_of_group(crashed=True)
        for _ in range(60):
            self.fake.tick(1.0)
        assert process.is_killed == is_busy

    @rule(data=st.data())
    @when(lambda machine: not is_draining(machine) and bool(machine.in_state(*WITH_GROUP)))
    def group_reports_in_time(self, data: st.DataObject) -> None:
        """A group that sends something within `stall_s` does not fail."""
        job = self.one_in(data, *WITH_GROUP)
        started = JobStarted(job_id=job.job_id)
        report = ProgressReport(job_id=job.job_id, progress=Progress(phase="decode"), timings_s={})
        for message in (started, started, report, started):
            self.fake.receive(message)
            for _ in range(30):
                self.fake.tick(1.0)
        self.fake.receive(started)
        assert not self.fake.process.is_killed

    @rule(data=st.data())
    @when(lambda machine: any(process.is_killed for process in machine.fake.processes))
    def killed_group_still_speaks(self, data: st.DataObject) -> None:
        killed = next(process for process in self.fake.processes if process.is_killed)
        message: Message | None = data.draw(st.sampled_from([None, READY, GroupFailed(message="late")]))
        if self.in_state(JobState.RUNNING):
            message = GpusReleased(job_id=self.in_state(JobState.RUNNING)[0].job_id)
        self.ignores(GroupMessage(killed, message))

    @rule()
    @when(lambda machine: machine.fake.gpu_group.process is not None)
    def group_speaks_of_a_job_that_it_does_not_have(self) -> None:
        with_group = {job.job_id for job in self.in_state(*WITH_GROUP)}
        others = {job.job_id for job in self.claimed} - with_group
        for job_id in ["unknown", *others]:
            self.ignores(GroupMessage(self.fake.process, GpusReleased(job_id=job_id)))

    @rule(data=st.data(), is_fetched=st.sampled_from([True, True, False]))
    @when(lambda machine: machine.fake.consumer.is_requested)
    def consumer_claims(self, data: st.DataObject, is_fetched: bool) -> None:
        """Claim a new job, or one whose earlier claim was requeued or lost. Its files may take a while."""
        self.fake.consumer.is_requested = False
        self.fake.tick()
        assert not self.fake.consumer.is_requested, "a second claim is requested before the first one came"
        self._claim(data)
        if is_fetched:
            self.fetch(self.claimed[-1])

    @rule(data=st.data())
    @when(lambda machine: not machine.in_state(JobState.FETCHING) and not machine.fake.consumer.has_ended)
    def consumer_claims_though_its_request_was_withdrawn(self, data: st.DataObject) -> None:
        self._claim(data)

    def _claim(self, data: st.DataObject) -> None:
        claimable_again = [
            job.job_id
            for job in self.claimed
            if job.stop_request == "lease_lost" or isinstance(self.fake.outcome(job), Requeued)
        ]
        job_id = data.draw(st.sampled_from([None, *claimable_again]), label="claimed again")
        job = self.fake.new_job(job_id, fence=1 + len(self.claimed))
        self.claimed.append(job)
        self.fake.claim(job)

    @rule()
    @when(lambda machine: not machine.claimed)
    def spool_has_a_finished_video(self) -> None:
        job = self.fake.new_job()
        self.claimed.append(job)
        self.fake.claim(job)
        self.fetch(job, Completed(VIDEO))

    @rule(data=st.data(), outcome=st.sampled_from([None, None, None, Failed(ERROR), Requeued(crashed=False)]))
    @when(lambda machine: bool(machine.in_state(JobState.FETCHING)))
    def job_is_fetched(self, data: st.DataObject, outcome: Failed | Requeued | None) -> None:
        self.fetch(self.one_in(data, JobState.FETCHING), outcome)

    @rule(has_claimed=st.booleans())
    @when(lambda machine: is_draining(machine) and not machine.in_state(JobState.FETCHING))
    def consumer_ends(self, has_claimed: bool) -> None:
        """End the consumer's thread, perhaps after a claim that the supervisor has not handled yet."""
        if has_claimed and not self.fake.consumer.has_ended:
            self.claimed.append(self.fake.new_job())
            self.fake.inbox.put(JobClaimed(self.claimed[-1]))
            self.fake.consumer.has_ended = True
            self.fake.tick()
            if not self.drain_is_late(limit_s=DRAIN_S + REQUEUE_S):
                assert serves(self), "the drain ended before the last claim was handled"
            self.fake.supervisor.handle(self.fake.inbox.get())
            self.fetch(self.claimed[-1])
        self.fake.consumer.has_ended = True
        self.fake.tick()

    @rule(data=st.data(), reason=st.sampled_from([*REASONS, None]))
    @when(lambda machine: bool(machine.fake.lease_renewer.jobs))
    def stop_is_requested(self, data: st.DataObject, reason: StopReason | None) -> None:
        job = self.one_in(data, *(state for state in JobState if state is not JobState.DONE))
        if job.stop_request == "lease_lost":  # for good
            return
        job.stop_request = reason
        if reason and job.state in ON_GPUS:
            self.stops.append(StopJob(job_id=job.job_id, reason=reason))
        elif reason and job.state is JobState.WAITING:
            self.expect(job, Stopped(reason))
        self.fake.supervisor.handle(StopRequested(job))

    @rule(data=st.data())
    @when(lambda machine: bool(machine.in_state(*WITH_GROUP)))
    def rank_0_proceeds(self, data: st.DataObject) -> None:
        job = self.one_in(data, *WITH_GROUP)
        match job.state:
            case JobState.RUNNING:
                actions = [self.report, self.begin_last_decode, self.begin_last_decode, self.release_gpus]
                actions.append(self.pause)
            case JobState.DECODING:
                actions = [self.report, self.release_gpus, self.pause]
            case _:
                actions = [self.finish_video]
        is_told_to_stop = any(stop.job_id == job.job_id for stop in self.fake.stops())
        if is_told_to_stop and job.state in ON_GPUS:
            actions.append(self.stop_job)
        data.draw(st.sampled_from([*actions, self.fail_job]), label="action")(job)

    @rule(data=st.data())
    @when(lambda machine: any(stop.job_id in machine.ids_on_gpus() for stop in machine.fake.stops()))
    def rank_0_stops_the_job(self, data: st.DataObject) -> None:
        self.stop_job(self.one_in(data, *ON_GPUS))

    def ids_on_gpus(self) -> set[str]:
        return {job.job_id for job in self.in_state(*ON_GPUS)}

    def report(self, job: ClaimedJob) -> None:
        progress, timings_s = Progress(phase="denoise", step=1, num_steps=4), {"encode": 1.0}
        interval = Interval(name="encode", lane="video", began_s=1.0, ended_s=2.0)
        self.checkpoints.append(job)
        for message in (
            JobStarted(job_id=job.job_id),
            ProgressReport(job_id=job.job_id, progress=progress, timings_s=timings_s),
            CheckpointSaved(job_id=job.job_id, checkpoint=CHECKPOINT),
            StageDone(job_id=job.job_id, stage=interval),
        ):
            self.fake.receive(message)
        assert (job.progress, job.timings_s) == (progress, timings_s)
        assert interval in job.timeline.intervals
        assert job.timeline.intervals[-1].name == "denoise"

    def pause(self, job: ClaimedJob) -> None:
        """Have a job of a world wait for other ranks. None may wait behind it, as behind a last decode."""
        if job.state is JobState.DECODING:
            for waiting in self.in_state(JobState.WAITING):
                self.expect(waiting, Requeued(crashed=False))
        self.fake.receive(JobPaused(job_id=job.job_id))
        assert (job.state, job.num_gpus) == (JobState.RUNNING, 0)

    def begin_last_decode(self, job: ClaimedJob) -> None:
        self.fake.receive(LastDecode(job_id=job.job_id))
        assert job.state is JobState.DECODING

    def release_gpus(self, job: ClaimedJob) -> None:
        self.fake.receive(GpusReleased(job_id=job.job_id))
        assert job.state is JobState.WRITING
        ended = job.timeline.intervals
        assert job.timeline.intervals == ended, "the phase on the GPUs has no end"

    def finish_video(self, job: ClaimedJob) -> None:
        self.expect(job, Completed(VIDEO))
        self.fake.receive(VideoDone(job_id=job.job_id, video=VIDEO, timings_s={"decode": 2.0}))
        assert job.timings_s == {"decode": 2.0}

    def stop_job(self, job: ClaimedJob) -> None:
        stop = [stop for stop in self.fake.stops() if stop.job_id == job.job_id][-1]
        self.expect(job, Stopped(stop.reason))
        self.fake.receive(JobStopped(job_id=job.job_id, reason=stop.reason))

    def fail_job(self, job: ClaimedJob) -> None:
        self.expect(job, Failed(ERROR))
        self.fake.receive(JobFailed(job_id=job.job_id, error=ERROR, timings_s={"denoise": 3.0}))
        assert job.timings_s == {"denoise": 3.0}

    @rule(data=st.data())
    @when(lambda machine: bool(machine.in_state(JobState.FINALIZING)))
    def finalizer_is_done(self, data: st.DataObject) -> None:
        job = self.one_in(data, JobState.FINALIZING)
        self.fake.finish(job)
        assert job.state is JobState.DONE

    @rule(is_enough=st.sampled_from([True, True, True, False]))
    @when(lambda _: True)
    def disk_space_changes(self, is_enough: bool) -> None:
        self.fake.disk_space.is_enough = is_enough
        self.fake.tick()

    @rule()
    @when(lambda machine: len(machine.claimed) > 3)
    def drain(self) -> None:
        """Ask for a drain. Another request, such as a second signal, neither repeats nor prolongs it."""
        if not is_draining(self):
            self.drained_at = self.fake.now
            for job in self.in_state(JobState.WAITING):
                self.expect(job, Requeued(crashed=False))
            for job in self.in_state(*ON_GPUS):
                if job.stop_request is None:
                    self.stops.append(StopJob(job_id=job.job_id, reason="drain"))
        self.fake.supervisor.handle(DrainRequested())

    # What holds after every step

    @invariant()
    def at_most_one_job_has_the_gpus(self) -> None:
        assert len(self.in_state(*ON_GPUS)) <= 1
        assert len(self.in_state(JobState.WAITING)) <= 1

    @invariant()
    def messages_of_rank_0_are_about_one_job(self) -> None:
        ids = [job.job_id for job in self.in_state(*WITH_GROUP)]
        assert len(ids) == len(set(ids))

    @invariant()
    def group_has_exactly_the_jobs_that_it_was_given(self) -> None:
        """A job with the group was sent to the running processes; a group without processes has none."""
        with_group = {job.job_id for job in self.in_state(*WITH_GROUP)}
        if self.fake.gpu_group.process is None:
            assert with_group == set()
        else:
            sent = {message.job_id for message in self.fake.sent if isinstance(message, RunJob)}
            assert with_group <= sent

    @invariant()
    def no_claimed_job_is_forgotten(self) -> None:
        """Every job in hand keeps its lease until it is done."""
        assert self.fake.supervisor.jobs == self.in_hand()
        assert self.fake.lease_renewer.jobs == self.in_hand()

    @invariant()
    def every_job_is_finalized_once_with_the_outcome_that_followed(self) -> None:
        for job in self.claimed:
            assert self.fake.outcome(job) == self.outcomes.get(job)
            assert (job in self.outcomes) == (job.state in {JobState.FINALIZING, JobState.DONE})

    @invariant()
    def every_started_job_was_sent_to_the_group_once(self) -> None:
        self.started += [job for job in self.in_state(*WITH_GROUP) if job not in self.started]
        assert all("wait" in [each.name for each in job.timeline.intervals] for job in self.started)
        assert self.fake.sent_to_any_group(RunJob) == [job.run for job in self.started]

    @invariant()
    def every_stop_was_sent_to_the_group_once(self) -> None:
        assert self.fake.sent_to_any_group(StopJob) == self.stops

    @invariant()
    def every_checkpoint_is_uploaded_once(self) -> None:
        assert self.fake.checkpoints.submitted == [(job, CHECKPOINT) for job in self.checkpoints]

    @invariant()
    def claim_is_requested_exactly_while_another_job_can_run(self) -> None:
        assert self.fake.consumer.is_requested == self.can_run_beside(self.in_hand())

    @invariant()
    def published_status_is_that_of_the_group(self) -> None:
        status, group = self.fake.heartbeat.status, self.fake.gpu_group
        job_id = next((job.job_id for job in self.in_state(*ON_GPUS)), None)
        if group.is_ready:
            idle: GroupState = "ready" if self.fake.disk_space.is_enough else "full"
            assert status == PublishedStatus("busy" if job_id else idle, job_id, CAPABILITY)
        else:
            assert (status.state, status.job_id) in {("starting", None), ("broken", None)}

    @invariant()
    def waiting_job_runs_once_the_gpus_are_free(self) -> None:
        assert not self.in_state(JobState.WAITING) or self.in_state(*ON_GPUS)

    @invariant()
    def draining_group_is_not_started_again(self) -> None:
        if is_draining(self) and self.fake.processes and self.fake.process.is_killed:
            assert self.fake.gpu_group.process is None

    @invariant()
    def drain_stops_all_that_begins_work(self) -> None:
        fake, draining = self.fake, is_draining(self)
        stopped = fake.consumer.stopping.is_set(), fake.fetcher.is_stopped, fake.finalizer.interrupted
        assert stopped == (draining, draining, draining)

    @invariant()
    def drain_keeps_its_times(self) -> None:
        """The group is killed after `DRAIN_S`; jobs that are not requeued `REQUEUE_S` later are given up."""
        if self.drained_at is None:
            return
        state = self.fake.supervisor.state
        is_done = self.fake.consumer.has_ended and self.fake.inbox.empty() and not self.in_hand()
        if is_done or self.drain_is_late(limit_s=DRAIN_S + REQUEUE_S):
            assert state is SupervisorState.STOPPED
        elif self.drain_is_late():
            assert state is SupervisorState.TERMINATING
            assert self.fake.gpu_group.process is None
        else:
            assert state is SupervisorState.DRAINING

    def teardown(self) -> None:
        """Drain: everything ends, whether or not the group and the finalizer still answer."""
        answers = serves(self) and len(self.claimed) % 2 == 0
        if serves(self):
            self.drain()
            self.every_stop_was_sent_to_the_group_once()
        for job in self.in_state(JobState.FETCHING):
            self.fetch(job)
        self.fake.consumer.has_ended = True
        for _ in range(20):
            if not serves(self):
                break
            if answers:
                for job in self.in_state(JobState.FINALIZING):
                    self.fake.finish(job)
            self.tick(1.0)
        self.every_job_is_finalized_once_with_the_outcome_that_followed()
        assert self.fake.supervisor.state is SupervisorState.STOPPED
        for job in self.claimed:
            assert job.state in {JobState.FINALIZING, JobState.DONE}
            assert self.fake.outcome(job) is not None
        if answers:
            assert all(job.state is JobState.DONE for job in self.claimed)


def test_supervisor_keeps_its_rules_in_any_order_of_events():
    run_state_machine_as_test(
        SupervisorMachine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
