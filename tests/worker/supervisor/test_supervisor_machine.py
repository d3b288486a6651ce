"""Check the supervisor's rules for any order of events.

Hypothesis plays the consumer, the lease renewer, rank 0, the finalizer and the clock. The invariants hold
after every step, and however an example ends, a drain must bring everything to its end.
"""

from __future__ import annotations

from collections.abc import Callable
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
from jobs.store.holder import StopReason
from tests.worker.supervisor.fakes import CHECKPOINT, READY, VIDEO, FakeSupervisor
from worker.messages import (
    CheckpointSaved,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobStarted,
    JobStopped,
    LastDecode,
    ProgressReport,
    RunJob,
    StopJob,
    VideoDone,
)
from worker.supervisor.events import DrainRequested, StopRequested
from worker.supervisor.job import ClaimedJob, Completed, Failed, Requeued, Stopped
from worker.supervisor.states import ON_GPUS, WITH_GROUP, GpuGroupState, JobState, SupervisorState

MAX_UNFINISHED = 4
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
        self.fake = FakeSupervisor(MAX_UNFINISHED, drain_s=10.0, requeue_s=5.0)
        self.claimed: list[ClaimedJob] = []
        self.lost: set[ClaimedJob] = set()  # jobs whose lease was lost before they were finalized
        self.ran: set[ClaimedJob] = set()
        self.crashed: set[ClaimedJob] = set()  # jobs that the group had when it failed while serving

    # What the parts do

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
        with_group = set(self.in_state(*WITH_GROUP))
        was_killed = self.fake.processes and self.fake.process.is_killed
        serving = not is_draining(self)
        self.fake.tick(seconds)
        if serving and not was_killed and self.fake.processes and self.fake.process.is_killed:
            self.crashed |= with_group

    @initialize(num_jobs=st.sampled_from([0, 1, 2, 3]))
    def begin(self, num_jobs: int) -> None:
        """Start from a ready group, with up to one job that is written, decoded, and waiting each.

        The states of several jobs are rare in random examples.
        """
        self.fake.bring_up()
        messages = (GpusReleased, LastDecode, None)  # for the first of three jobs, the second, the last
        for message in messages[len(messages) - num_jobs :]:
            self.fake.consumer.is_requested = False
            self.claimed.append(self.fake.new_job())
            self.fake.claim(self.claimed[-1])
            self.fake.fetch(self.claimed[-1])
            if message is not None:
                self.fake.receive(message(job_id=self.claimed[-1].job_id))

    @rule()
    @when(lambda machine: machine.fake.gpu_group.state is GpuGroupState.STARTING)
    def group_becomes_ready(self) -> None:
        self.fake.receive(READY)

    @rule(failure=st.sampled_from(["connection closed", "rank died", "message"]))
    @when(lambda machine: machine.fake.gpu_group.process is not None)
    def group_fails(self, failure: str) -> None:
        self.crashed |= set(self.in_state(*WITH_GROUP))
        if failure == "rank died":
            self.fake.process.lives = False
            self.fake.tick()
        else:
            self.fake.receive(GroupFailed(message=failure) if failure == "message" else None)

    @rule(data=st.data(), is_fetched=st.sampled_from([True, True, False]))
    @when(lambda machine: machine.fake.consumer.is_requested)
    def consumer_claims(self, data: st.DataObject, is_fetched: bool) -> None:
        """Claim a new job, or one whose earlier claim was requeued or lost. Its files may take a while."""
        self.fake.consumer.is_requested = False
        self._claim(data)
        if is_fetched:
            self.fake.fetch(self.claimed[-1])

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
        self.fake.fetch(job, Completed(VIDEO))

    @rule(data=st.data(), outcome=st.sampled_from([None, None, None, Failed(ERROR), Requeued(crashed=False)]))
    @when(lambda machine: bool(machine.in_state(JobState.FETCHING)))
    def job_is_fetched(self, data: st.DataObject, outcome: Failed | Requeued | None) -> None:
        self.fake.fetch(self.one_in(data, JobState.FETCHING), outcome)

    @rule()
    @when(lambda machine: is_draining(machine) and not machine.in_state(JobState.FETCHING))
    def consumer_ends(self) -> None:
        self.fake.consumer.has_ended = True
        self.fake.tick()

    @rule(data=st.data(), reason=st.sampled_from([*REASONS, None]))
    @when(lambda machine: bool(machine.fake.lease_renewer.jobs))
    def stop_is_requested(self, data: st.DataObject, reason: StopReason | None) -> None:
        job = self.one_in(data, *(state for state in JobState if state is not JobState.DONE))
        if job.stop_request == "lease_lost":  # for good
            return
        was_final = job.state in {JobState.FINALIZING, JobState.DONE}
        job.stop_request = reason
        if reason == "lease_lost" and not was_final:
            self.lost.add(job)
        self.fake.supervisor.handle(StopRequested(job))
        if reason and job.state in ON_GPUS:
            assert self.fake.stops()[-1] == StopJob(job_id=job.job_id, reason=reason)

    @rule(data=st.data())
    @when(lambda machine: bool(machine.in_state(*WITH_GROUP)))
    def rank_0_proceeds(self, data: st.DataObject) -> None:
        job = self.one_in(data, *WITH_GROUP)
        match job.state:
            case JobState.RUNNING:
                actions = [self.report, self.begin_last_decode, self.begin_last_decode, self.release_gpus]
            case JobState.DECODING:
                actions = [self.report, self.release_gpus]
            case _:
                actions = [self.finish_video]
        is_told_to_stop = any(stop.job_id == job.job_id for stop in self.fake.stops())
        if is_told_to_stop and job.state in ON_GPUS:
            actions.append(self.stop_job)
        data.draw(st.sampled_from([*actions, self.fail_job]), label="action")(job)

    def report(self, job: ClaimedJob) -> None:
        progress = Progress(phase="denoise", step=1, num_steps=4)
        for message in (
            JobStarted(job_id=job.job_id),
            ProgressReport(job_id=job.job_id, progress=progress, timings_s={}),
            CheckpointSaved(job_id=job.job_id, checkpoint=CHECKPOINT),
        ):
            self.fake.receive(message)

    def begin_last_decode(self, job: ClaimedJob) -> None:
        self.fake.receive(LastDecode(job_id=job.job_id))
        assert job.state is JobState.DECODING

    def release_gpus(self, job: ClaimedJob) -> None:
        self.fake.receive(GpusReleased(job_id=job.job_id))
        assert job.state is JobState.WRITING

    def finish_video(self, job: ClaimedJob) -> None:
        self.fake.receive(VideoDone(job_id=job.job_id, video=VIDEO, timings_s={}))
        expected = Stopped("lease_lost") if job in self.lost else Completed(VIDEO)
        assert self.fake.outcome(job) == expected

    def stop_job(self, job: ClaimedJob) -> None:
        stop = [stop for stop in self.fake.stops() if stop.job_id == job.job_id][-1]
        self.fake.receive(JobStopped(job_id=job.job_id, reason=stop.reason))

    def fail_job(self, job: ClaimedJob) -> None:
        self.fake.receive(JobFailed(job_id=job.job_id, error=ERROR, timings_s={}))

    @rule(data=st.data())
    @when(lambda machine: bool(machine.in_state(JobState.FINALIZING)))
    def finalizer_is_done(self, data: st.DataObject) -> None:
        self.fake.finish(self.one_in(data, JobState.FINALIZING))

    @rule(is_enough=st.sampled_from([True, True, True, False]))
    @when(lambda _: True)
    def disk_space_changes(self, is_enough: bool) -> None:
        self.fake.disk_space.is_enough = is_enough
        self.fake.tick()

    @rule()
    @when(lambda machine: len(machine.claimed) > 3)
    def drain(self) -> None:
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
        in_hand = [job for job in self.claimed if job.state is not JobState.DONE]
        assert self.fake.supervisor.jobs == in_hand
        assert self.fake.lease_renewer.jobs == in_hand

    @invariant()
    def every_job_is_finalized_exactly_once(self) -> None:
        for job in self.claimed:
            finalized = job.state in {JobState.FINALIZING, JobState.DONE}
            assert len(self.fake.outcomes(job)) == (1 if finalized else 0)

    @invariant()
    def job_whose_lease_is_lost_is_never_completed(self) -> None:
        for job in self.lost:
            assert self.fake.outcome(job) in {None, Stopped("lease_lost")}

    @invariant()
    def crash_counts_as_an_attempt(self) -> None:
        for job in self.crashed - self.lost:
            assert self.fake.outcome(job) == Requeued(crashed=True)

    @invariant()
    def job_that_never_ran_has_not_crashed(self) -> None:
        self.ran |= set(self.in_state(*WITH_GROUP))
        for job in self.claimed:
            assert job in self.ran or self.fake.outcome(job) != Requeued(crashed=True)

    @invariant()
    def no_claim_is_requested_that_could_not_run(self) -> None:
        if self.fake.consumer.is_requested:
            assert self.fake.supervisor.state is SupervisorState.SERVING
            assert self.fake.gpu_group.is_ready
            assert self.fake.disk_space.is_enough
            assert not self.in_state(JobState.FETCHING, JobState.WAITING, JobState.RUNNING)

    @invariant()
    def idle_group_gets_a_claim(self) -> None:
        """A supervisor that could run a job has asked for one."""
        can_run = (
            self.fake.supervisor.state is SupervisorState.SERVING
            and self.fake.gpu_group.is_ready
            and not self.fake.supervisor.jobs
            and self.fake.disk_space.is_enough
        )
        assert not can_run or self.fake.consumer.is_requested

    @invariant()
    def waiting_job_runs_once_the_gpus_are_free(self) -> None:
        assert not self.in_state(JobState.WAITING) or self.in_state(*ON_GPUS)

    @invariant()
    def draining_group_is_not_started_again(self) -> None:
        if is_draining(self) and self.fake.processes and self.fake.process.is_killed:
            assert self.fake.gpu_group.process is None

    @invariant()
    def draining_job_was_told_to_stop(self) -> None:
        if self.fake.supervisor.state is SupervisorState.DRAINING:
            stopped = {stop.job_id for stop in self.fake.stops()} if self.fake.processes else set()
            assert {job.job_id for job in self.in_state(*ON_GPUS)} <= stopped

    def teardown(self) -> None:
        """Drain: everything ends, whether or not the group and the finalizer still answer."""
        answers = len(self.claimed) % 2 == 0
        if serves(self):
            self.fake.supervisor.handle(DrainRequested())
        for job in self.in_state(JobState.FETCHING):
            self.fake.fetch(job)
        self.fake.consumer.has_ended = True
        for _ in range(20):
            if not serves(self):
                break
            if answers:
                for job in self.in_state(JobState.FINALIZING):
                    self.fake.finish(job)
            if serves(self):
                self.fake.tick(1.0)
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
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
