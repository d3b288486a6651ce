"""Make several jobs of one request: a batch, whose videos differ in their seeds only."""

from __future__ import annotations

from dataclasses import replace

from jobs.errors import InvalidRequest
from jobs.order import Order
from jobs.record import Batch
from jobs.storage.keys import input_key, new_job_id
from jobs.store.submission import Submission
from model.spec.params import MAX_SEED


def as_batch(first: Submission, num_videos: int) -> list[Submission]:
    """Return the submissions of a request for several videos, the given one first.

    Their seeds follow each other, and each job has input files of its own. A single video belongs to no
    batch. Raises InvalidRequest if the last seed is too large.
    """
    if num_videos == 1:
        return [first]
    largest = MAX_SEED - (num_videos - 1)
    if first.order.seed > largest:
        raise InvalidRequest(f"seed: must be at most {largest} for {num_videos} videos", "seed")
    job_ids = (first.id, *(new_job_id() for _ in range(num_videos - 1)))
    first = replace(first, batch=Batch(id=new_job_id(), job_ids=job_ids))
    others = [
        replace(first, id=job_id, order=_order_of(job_id, first.order, number), key_reservation=None)
        for number, job_id in enumerate(job_ids[1:], 1)
    ]
    return [first, *others]


def _order_of(job_id: str, first: Order, number: int) -> Order:
    """Return the order of another job of a batch."""
    files = {
        field: file.model_copy(update={"key": input_key(job_id, file.key.rpartition("/")[2])})
        for field, file in first.inputs_by_field.items()
    }
    return first.model_copy(update={"seed": first.seed + number, **files})
