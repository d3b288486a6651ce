"""`python -m service`: the HTTP service, until it is told to end. Settings: `service.settings`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import uvicorn
from pydantic import ValidationError

from jobs.errors import Unavailable
from jobs.logs import set_up_log
from jobs.private import PRIVATE_UMASK
from service.app import create_app
from service.auth import OpenToAll, check_exposure
from service.settings import Settings, problems_of

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
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
        log_config=None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
