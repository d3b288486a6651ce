"""Takes webhooks out of the outbox and sends them, in a few threads, until each is delivered or given up.

Runs within the service, or alone (`python -m service.webhooks`). Any number of couriers may run: a delivery
is leased to one of them.
"""

from __future__ import annotations

import logging
import time
from threading import Event, Lock, Thread

from jobs.errors import Unavailable
from jobs.logs import about, names_of
from jobs.store.outbox import Attempt, Delivery, Outbox
from service.errors import UnusableInput
from service.settings import Settings
from service.webhooks.sending import Payload, send
from service.webhooks.signing import Signer

logger = logging.getLogger(__name__)

RETRY_AFTER_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)  # as the specification advises
_GONE = 410  # the receiver wants no more of this
LEAVING_S = 2.0  # how long receivers that do not answer may hold up the end of the process
_MARGIN_S = 30.0  # how much longer a delivery is ours than sending it may take


class Courier:
    """The threads, as a context: they run as long as the context is open."""

    def __init__(self, outbox: Outbox, signer: Signer, settings: Settings) -> None:
        self._outbox = outbox
        self._signer = signer
        self._settings = settings
        self._limits = settings.webhook_limits
        self._ended = Event()
        self._looking = Lock()
        self._threads = [
            Thread(target=self._run, name=f"webhooks-{number}", daemon=True)
            for number in range(settings.webhook_threads)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        """Stop. A delivery whose receiver still has not answered then is due again when its lease is over."""
        self._ended.set()
        deadline = time.monotonic() + LEAVING_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def deliver_next(self) -> bool:
        """Send the webhook whose turn it is; False if there is none. Raises Unavailable."""
        if (delivery := self._take()) is None:
            return False
        self._deliver(delivery)
        return True

    def _take(self) -> Delivery | None:
        lease_s = self._limits.total_timeout_s + self._limits.connect_timeout_s + _MARGIN_S
        bounds = self._settings.webhook_max_per_owner, self._settings.webhook_max_per_host
        return self._outbox.take(lease_s, *bounds)

    def _deliver(self, delivery: Delivery) -> None:
        attempt = self._attempt(delivery)
        with about(names_of(delivery.job)):
            answer = attempt.error or f"answered {attempt.status_code}"
            logger.info("webhook %s, attempt %d: %s", delivery.id, attempt.attempt, answer)
        self._outbox.settle(delivery, attempt, _retry_s(attempt))

    def _attempt(self, delivery: Delivery) -> Attempt:
        body = Payload.of(delivery, self._settings.public_url).model_dump_json().encode()
        try:
            status = send(delivery, body, self._signer, self._limits)
        except UnusableInput as error:
            return _judged(delivery, None, str(error))
        return _judged(delivery, status, None)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                if delivery := self._wait_for_next():
                    self._deliver(delivery)
            except Unavailable as error:
                logger.warning("cannot send webhooks now: %s", error.message)
                self._pause()
            except Exception:
                logger.exception("a webhook could not be dealt with; it is due again when its lease is over")
                self._pause()

    def _pause(self) -> None:
        self._ended.wait(self._settings.webhook_interval_s)

    def _wait_for_next(self) -> Delivery | None:
        """Wait for a delivery; None at the end. One thread looks at a time, so idle threads cost nothing."""
        with self._looking:
            while not self._ended.is_set():
                if delivery := self._take():
                    return delivery
                self._pause()
        return None


def _judged(delivery: Delivery, status: int | None, error: str | None) -> Attempt:
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
