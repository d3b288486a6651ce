"""`python -m service`: the HTTP service, until it is told to end. Settings: `service.settings`."""

from __future__ import annotations

import logging
import os
import resource
import sys
from contextlib import suppress

import uvicorn
from pydantic import ValidationError

from jobs.errors import Unavailable
from jobs.logs import set_up_log
from jobs.private import PRIVATE_UMASK
from service.app import create_app
from service.auth import OpenToAll, check_exposure
from service.http.protocol import server_options
from service.settings import Settings, problems_of

logger = logging.getLogger(__name__)

_OTHER_FILES = 500  # beside connections of clients: uploads, Redis, hosts that are asked
_GRACE_S = 10  # for answers under way, such as event streams, when the service is told to end


def main() -> int:
    """Run until SIGTERM or Ctrl-C; 2 for settings that make no sense."""
    try:
        settings = Settings()
    except ValidationError as error:
        print("\n".join(problems_of(error)), file=sys.stderr)
        return 2
    set_up_log(settings.log_format)
    os.umask(PRIVATE_UMASK)
    app = create_app(settings)
    try:
        with suppress(Unavailable):  # then it asks for keys, whether there are any or not
            check_exposure(settings, app.state.backend.authenticator.keys)
    except OpenToAll as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    _allow_files(settings.max_connections + _OTHER_FILES)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=_GRACE_S,
        **server_options(settings.connection_limits),
    )
    return 0


def _allow_files(wanted: int) -> None:
    """Raise this process's limit on open files as far as may be; warn where it does not suffice."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        logger.warning("%d open files are allowed, but MAX_CONNECTIONS may need %d", hard, wanted)
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
