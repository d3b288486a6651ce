"""Compare the deadline of a request with the time at which its video can be expected."""

from __future__ import annotations

import math
from dataclasses import replace

from jobs.record import QueueEstimate
from jobs.store.submission import Submission
from service.errors import DeadlineTooEarly


def with_prediction(submission: Submission, prediction: QueueEstimate, *, refuse_if_late: bool) -> Submission:
    """Return a submission that has a deadline with its expected run time, and a warning if it will be late.

    Raises DeadlineTooEarly for one that will be late if `refuse_if_late`. Nothing is late while no job of a
    comparable size has ever succeeded, or while no group is up.
    """
    deadline_s, eta_s = submission.deadline_s, prediction.eta_s
    assert deadline_s is not None
    submission = replace(submission, expected_run_s=prediction.run_s)
    if eta_s is None or eta_s <= deadline_s:
        return submission
    rule = f"the video is expected {math.ceil(eta_s)} s after submission, later than {deadline_s:g} s"
    if refuse_if_late:
        raise DeadlineTooEarly(f"deadline_s: {rule}", "deadline_s")
    return replace(submission, warnings=(*submission.warnings, f"deadline_s: {rule}"))
