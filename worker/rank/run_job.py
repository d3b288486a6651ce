"""Run one job on this rank, in step with the other ranks of the group.

Next on the way of a request: `worker.rank.model_engine`, which calls the model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

from jobs.record import JobError
from model.pipeline.events import Event
from worker.messages import JOB_ERROR, RunJob
from worker.rank.consensus import Consensus, GroupBroken, StepOutcome
from worker.rank.engine import Engine, InputsRead
from worker.rank.failures import outcome_of
from worker.rank.leader import Leader

logger = logging.getLogger(__name__)


def run_job(
    run: RunJob,
    engine: Engine,
    consensus: Consensus,
    leader: Leader | None,
    report_failure: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a job until it is done, stops or fails. `leader` is None on all ranks but the first.

    `report_failure` is called with the reason before this rank ends its process because it failed alone.

    Raises GroupBroken, and whatever a collective raises when another rank has died.
    """
    with closing(engine.generate(run)) as events:  # type: ignore[type-var]
        while True:
            event, outcome = _next_event(events, leader)
            decision = _decide(run, outcome, consensus, report_failure)
            # A step counts once all ranks have finished it: until then its state may be wrong.
            if leader and event is not None and decision.error is None:
                leader.handle(event)
            if event is None or decision.ends_job:
                break
    if decision.ends_job:
        _release_memory(run, decision, engine)
    if leader:
        leader.end(decision)


def _decide(
    run: RunJob, outcome: StepOutcome, consensus: Consensus, report_failure: Callable[[str], None]
) -> StepOutcome:
    def on_failed_alone() -> None:
        assert outcome.error
        report_failure(outcome.error.message)
        _write_job_error(run, outcome.cause)

    try:
        return consensus.decide(outcome, on_failed_alone)
    except GroupBroken as broken:
        _write_job_error(run, broken.cause)
        raise


def _release_memory(run: RunJob, decision: StepOutcome, engine: Engine) -> None:
    """Release what the job left. Raises if the device is broken, which only its next use shows."""
    try:
        engine.release_memory()
    except Exception:
        _write_job_error(run, decision.cause)
        raise


def _write_job_error(run: RunJob, cause: JobError | None) -> None:
    """Write the job's error to its folder, where the supervisor finds it when the group has ended.

    Without a cause the job is tried again, and nothing is written.
    """
    if cause is None:
        return
    part = run.folder / f"{JOB_ERROR}.{os.getpid()}.part"  # of this rank: others may do the same
    with suppress(OSError):  # a rank of another machine does not have the folder
        part.write_text(cause.model_dump_json())
        part.replace(run.folder / JOB_ERROR)


def _next_event(
    events: Iterator[InputsRead | Event], leader: Leader | None
) -> tuple[InputsRead | Event | None, StepOutcome]:
    """Return the next event, None after the last one and after an error, and this rank's outcome."""
    try:
        event = next(events, None)
        if leader:
            leader.raise_if_failed()
    except Exception as error:
        logger.exception("this rank cannot go on with the job")
        return None, outcome_of(error)
    if event is None or leader is None:
        return event, StepOutcome()
    return event, StepOutcome(stop_request=leader.stop_request_at(event))
