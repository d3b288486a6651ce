"""Send webhooks in a process of its own: `python -m service.webhooks`.

For installations where the services have `LONGCAT_WEBHOOK_THREADS=0`.
"""

from __future__ import annotations

import signal
import sys

from jobs.connect import connect
from jobs.logs import set_up_log
from jobs.settings import InvalidSettings
from jobs.store.outbox import Outbox
from service.settings import Settings
from service.webhooks.delivery_worker import DeliveryWorker
from service.webhooks.signing import Signer


def main() -> int:
    """Run until SIGTERM or Ctrl-C. Return the exit code: 2 for invalid settings."""
    try:
        settings = Settings.read()
    except InvalidSettings as error:
        print(error, file=sys.stderr)
        return 2
    set_up_log(settings.log_format)
    threads = settings.webhook_threads or Settings.model_fields["webhook_threads"].default
    settings = settings.model_copy(update={"webhook_threads": threads})
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(
        signal.SIG_BLOCK, signals
    )  # inherited by the threads: only `sigwait` receives them
    with connect(settings.redis_address) as redis:
        signer = Signer(redis, settings.webhook_secret, settings.webhook_secret_previous)
        with DeliveryWorker(Outbox(redis), signer, settings):
            signal.sigwait(signals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
