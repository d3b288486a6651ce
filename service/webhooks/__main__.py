"""`python -m service.webhooks`: sends webhooks until it is told to end, where services are not to."""

from __future__ import annotations

import signal
import sys

from pydantic import ValidationError

from jobs.connect import connect
from jobs.logs import set_up_log
from jobs.store.outbox import Outbox
from service.settings import Settings, problems_of
from service.webhooks.courier import Courier
from service.webhooks.signing import Signer


def main() -> int:
    """Run until SIGTERM or Ctrl-C; 2 for settings that make no sense."""
    try:
        settings = Settings()
    except ValidationError as error:
        print("\n".join(problems_of(error)), file=sys.stderr)
        return 2
    set_up_log(settings.log_format)
    threads = settings.webhook_threads or Settings.model_fields["webhook_threads"].default
    alone = settings.model_copy(update={"webhook_threads": threads})
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # also in the threads: only `sigwait` takes them
    with connect(alone.redis_url) as redis:
        signer = Signer(redis, alone.webhook_secret, alone.webhook_secret_previous)
        with Courier(Outbox(redis), signer, alone):
            signal.sigwait(ends)
    return 0


if __name__ == "__main__":
    sys.exit(main())
