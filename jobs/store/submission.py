"""Define a job as it is submitted, and the fields of its record that it sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from jobs.order import Order, Priority
from jobs.record import WEBHOOK_EVENTS, Batch, Job, WebhookEvent
from jobs.requirement import Requirement
from jobs.store.idempotency import KeyReservation
from jobs.store.scripts import present, to_json, to_ms
from jobs.work import work_units

SCHEMA_VERSION = 3
"""The version of stored records."""


@dataclass(frozen=True)
class Submission:
    """A job to be queued.

    Attributes:
        batch: the jobs that are submitted together with it, None if it is alone.
        weight: the owner's share of the groups is proportional to it.
        deadline_s: when its video is wanted, from submission; None if that does not matter.
        expected_run_s: how long it is expected to run, so that it can start in time; None if unknown.
        default_deadline_s: without a deadline, it takes its place as if it had to start within this time.
        ageing_s: it starts before jobs of the next higher priority that were queued this much later; None is
            only after all of them.
        max_queue_s: how long it may wait for its first start; None is no limit.
        max_run_s: how long it may run, all attempts together; None is no limit.
        requirement: what a group needs to run it; by default that of the order, for groups of any size limit.
        gpu_hour_price: the operator's price for an hour of one GPU, in `currency`; None if there is none.
        key_reservation: the idempotency key that is bound to the job.
        warnings: what is special about the video, for people.
        trace: the request that submitted it: `request_id`, and `traceparent` of W3C Trace Context.
    """

    id: str
    order: Order
    priority: Priority = "normal"
    owner: str = ""
    batch: Batch | None = None
    weight: float = 1.0
    ageing_s: float | None = None
    deadline_s: float | None = None
    expected_run_s: float | None = None
    default_deadline_s: float = 3600.0
    metadata: Mapping[str, str] = field(default_factory=dict)
    webhook_url: str | None = None
    webhook_events: tuple[WebhookEvent, ...] = WEBHOOK_EVENTS
    max_queue_s: float | None = None
    max_run_s: float | None = None
    requirement: Requirement | None = None
    gpu_hour_price: Decimal | None = None
    currency: str | None = None
    key_reservation: KeyReservation | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def record(self) -> dict[str, object]:
        """Return the fields of the record that are known at submission."""
        fields: dict[str, object] = {
            **self.trace,
            "schema_version": SCHEMA_VERSION,
            "id": self.id,
            "order": self.order.model_dump_json(),
            "order_version": self.order.schema_version,
            "task": self.order.plan.task,
            "work_units": work_units(self.order.plan),
            "requirement": str(self.requirement or Requirement.of(self.order)),
            "priority": self.priority,
            "owner": self.owner,
            "batch": to_json(self.batch),
            "weight": self.weight,
            "ageing_ms": to_ms(self.ageing_s),
            "deadline_ms": to_ms(self.deadline_s),  # the script makes a time of it
            "expected_run_ms": to_ms(self.expected_run_s),
            "default_deadline_ms": to_ms(self.default_deadline_s),
            "metadata": json.dumps(dict(self.metadata)),
            "webhook_url": self.webhook_url,
            "webhook_events": json.dumps(self.webhook_events),
            "idempotency_key": self.key_reservation and self.key_reservation.name,
            "max_queue_ms": to_ms(self.max_queue_s),
            "max_run_ms": to_ms(self.max_run_s),
            "gpu_hour_price": None if self.gpu_hour_price is None else format(self.gpu_hour_price, "f"),
            "currency": self.currency,
            "warnings": json.dumps(self.warnings) if self.warnings else None,
        }
        return present(fields)


class Submitted(NamedTuple):
    """A submitted job, or the first of several. `is_new` is false if it was submitted before."""

    job: Job
    is_new: bool
