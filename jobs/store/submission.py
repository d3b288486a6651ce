"""Define a job as it is submitted, and the fields of its record that it sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.order import Order, Priority
from jobs.record import WEBHOOK_EVENTS, WebhookEvent
from jobs.store.idempotency import Hold
from jobs.store.scripts import present


@dataclass(frozen=True)
class Submission:
    """A job to be queued.

    `max_queue_s` bounds the wait for its first start, `max_run_s` the time that it runs, all attempts
    together; None is no bound. `hold` is the idempotency key that is to be bound to the job;
    `trace` names the request that ordered it (`request_id`, W3C's `traceparent`).
    """

    id: str
    order: Order
    priority: Priority = "normal"
    owner: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    webhook_url: str | None = None
    webhook_events: tuple[WebhookEvent, ...] = WEBHOOK_EVENTS
    max_queue_s: float | None = None
    max_run_s: float | None = None
    hold: Hold | None = None
    trace: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """The fields of the record that are known at submission."""
        fields: dict[str, object] = {
            **self.trace,
            "id": self.id,
            "order": self.order.model_dump_json(),
            "task": self.order.plan.task,
            "priority": self.priority,
            "owner": self.owner,
            "metadata": json.dumps(dict(self.metadata)),
            "webhook_url": self.webhook_url,
            "webhook_events": json.dumps(self.webhook_events),
            "idempotency_key": self.hold and self.hold.name,
            "max_queue_ms": None if self.max_queue_s is None else round(self.max_queue_s * 1000),
            "max_run_ms": None if self.max_run_s is None else round(self.max_run_s * 1000),
        }
        return present(fields)
