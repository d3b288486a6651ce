"""Takes webhooks out of the outbox and sends them, in a few threads, until each is delivered or given up.

Runs within the service, or alone (`python -m service.webhooks`); many may run, each delivery is with one.
"""

from __future__ import annotations

import logging
from threading import Event, Thread

from jobs.errors import Unavailable
from jobs.logs import about, names_of
from jobs.outbox import Attempt, Delivery, Outbox
from service.errors import UnusableInput
from service.settings import Settings
from service.webhooks.sending import Payload, send
from service.webhooks.signing import Signer

logger = logging.getLogger(__name__)

RETRY_AFTER_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)  # as the specification advises
_GONE = 410  # the receiver wants no more of this
_MARGIN_S = 30.0  # how much longer a delivery is ours than sending it may take


class Courier:
    """The threads, as a context: they run as long as the context is open."""

    def __init__(self, outbox: Outbox, signer: Signer, settings: Settings) -> None:
        self._outbox = outbox
        self._signer = signer
        self._settings = settings
        self._ended = Event()
        self._threads = [
            Thread(target=self._run, name=f"webhooks-{number}", daemon=True)
            for number in range(settings.webhook_threads)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def deliver_next(self) -> bool:
        """Send the webhook that is due; False if none is. Raises Unavailable."""
        limits = self._settings.webhook_limits
        delivery = self._outbox.take(limits.total_timeout_s + limits.connect_timeout_s + _MARGIN_S)
        if delivery is None:
            return False
        attempt = self._attempt(delivery)
        with about(names_of(delivery.job)):
            answer = attempt.error or f"answered {attempt.status_code}"
            logger.info("webhook %s, attempt %d: %s", delivery.id, attempt.attempt, answer)
        self._outbox.settle(delivery, attempt, _retry_s(attempt))
        return True

    def _attempt(self, delivery: Delivery) -> Attempt:
        body = Payload.of(delivery, self._settings.public_url).model_dump_json().encode()
        try:
            status = send(delivery, body, self._signer, self._settings.webhook_limits)
        except UnusableInput as error:
            return _judged(delivery, None, str(error))
        return _judged(delivery, status, None)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                if self.deliver_next():
                    continue
            except Unavailable as error:
                logger.warning("cannot send webhooks now: %s", error.message)
            except Exception:
                logger.exception("a webhook could not be dealt with; it is due again when its lease is over")
            self._ended.wait(self._settings.webhook_interval_s)


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
