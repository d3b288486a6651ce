"""Send webhooks in a few threads, each until it is delivered or given up.

Runs within the service, or alone (`python -m service.webhooks`). A worker leases each delivery, so any number
of workers may run.
"""

from __future__ import annotations

import logging
import time
from threading import Event, Lock, Thread

from jobs.errors import Unavailable, UnreadableRecord
from jobs.logs import about, names_of
from jobs.store.outbox import Attempt, Delivery, Outbox
from service.errors import UnusableInput
from service.settings import Settings
from service.webhooks.sender import send_webhook
from service.webhooks.signing import Signer

logger = logging.getLogger(__name__)

RETRY_AFTER_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)  # as the specification advises
SHUTDOWN_TIMEOUT_S = 2.0  # receivers that do not answer may delay the end of the process this long
_GONE = 410  # the receiver asks for no further attempts
_LEASE_MARGIN_S = 30.0  # how much longer the lease is than the longest attempt


class DeliveryWorker:
    """Threads that send webhooks while the context is open."""

    def __init__(self, outbox: Outbox, signer: Signer, settings: Settings) -> None:
        self._outbox = outbox
        self._signer = signer
        self._settings = settings
        self._limits = settings.webhook_limits
        self._stopped = Event()
        self._polling = Lock()
        self._threads = [
            Thread(target=self._run, name=f"webhooks-{number}", daemon=True)
            for number in range(settings.webhook_threads)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        """Stop. A delivery that is still being sent becomes due again when its lease ends."""
        self._stopped.set()
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def deliver_next(self) -> bool:
        """Send the next webhook that is due. If there is none, pause and return False. Raises Unavailable.

        Only one thread at a time looks for one, and pauses.
        """
        with self._polling:
            delivery = None if self._stopped.is_set() else self._lease()
            if delivery is None:
                self._pause()
                return False
        self._deliver(delivery)
        return True

    def _lease(self) -> Delivery | None:
        lease_s = self._limits.total_timeout_s + self._limits.connect_timeout_s + _LEASE_MARGIN_S
        settings = self._settings
        return self._outbox.take(lease_s, settings.webhook_max_per_owner, settings.webhook_max_per_host)

    def _deliver(self, delivery: Delivery) -> None:
        attempt = self._attempt(delivery)
        with about(names_of(delivery.job)):
            outcome = attempt.error or f"answered {attempt.status_code}"
            logger.info("webhook %s, attempt %d: %s", delivery.id, attempt.attempt, outcome)
        self._outbox.settle(delivery, attempt, _retry_s(attempt))

    def _attempt(self, delivery: Delivery) -> Attempt:
        try:
            status = send_webhook(delivery, self._signer, self._limits, self._settings.public_url)
        except (UnusableInput, UnreadableRecord) as error:
            return _attempt_result(delivery, None, str(error))
        return _attempt_result(delivery, status, None)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.deliver_next()
            except Unavailable as error:
                logger.warning("cannot send webhooks now: %s", error)
                self._pause()
            except Exception:
                logger.exception("sending a webhook failed; it is due again when its lease ends")
                self._pause()

    def _pause(self) -> None:
        self._stopped.wait(self._settings.webhook_interval_s)


def _attempt_result(delivery: Delivery, status: int | None, error: str | None) -> Attempt:
    if status is not None and 200 <= status < 300:
        outcome = "delivered"
    elif status == _GONE or delivery.attempt > len(RETRY_AFTER_S):
        outcome = "given_up"
    else:
        outcome = "failed"
    return Attempt(
        event=delivery.event,
        attempt=delivery.attempt,
        outcome=outcome,
        status_code=status,
        error=error,
    )


def _retry_s(attempt: Attempt) -> float | None:
    return RETRY_AFTER_S[attempt.attempt - 1] if attempt.outcome == "failed" else None
