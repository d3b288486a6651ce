"""Run the HTTP service: `python -m service`. `service.settings` lists its settings."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

import uvicorn

from jobs.errors import Unavailable, UnfitServer
from jobs.logs import set_up_log
from jobs.private_files import PRIVATE_UMASK
from jobs.settings import SETTINGS_HELP, InvalidSettings, warn_of_unknown_settings
from jobs.store.keys_version import check_redis
from service.app import UNUSABLE, create_app
from service.http.protocol import server_options
from service.jobs.event_streams import EventStreams
from service.keys.authentication import ExposedWithoutKeys, check_exposure
from service.settings import Settings

logger = logging.getLogger(__name__)

_OTHER_FILES = 500  # beside connections of clients: uploads, Redis, outgoing connections
_NOT_STARTED = 3  # the exit code if startup failed
GRACE_S = 10  # for responses in progress at shutdown


class _Server(uvicorn.Server):
    """End event streams before waiting for responses in progress: streams would not end by themselves."""

    def __init__(self, config: uvicorn.Config, event_streams: EventStreams) -> None:
        super().__init__(config)
        self._event_streams = event_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and wait for responses in progress."""
        self._event_streams.close()
        await super().shutdown(sockets)


def main() -> int:
    """Run until SIGTERM or Ctrl-C. Return the exit code.

    It is 2 if the settings or the Redis server cannot be used, 3 if startup failed.
    """
    argparse.ArgumentParser(
        prog="python -m service", description="Run the API.", epilog=SETTINGS_HELP
    ).parse_args()
    try:
        settings = Settings.read()
    except InvalidSettings as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    set_up_log(settings.log_format)
    warn_of_unknown_settings()
    os.umask(PRIVATE_UMASK)
    app = create_app(settings)
    backend = app.state.backend
    try:
        with suppress(Unavailable):  # without Redis, an exposed service refuses requests without a key anyway
            check_redis(backend.redis, settings.redis_wait_replicas)
            app.state.is_redis_checked = True
            check_exposure(settings, backend.authenticator.keys)
    except (UnfitServer, ExposedWithoutKeys) as error:
        print(f"error: {error.message}", file=sys.stderr)
        return UNUSABLE
    _raise_open_files_limit(settings.max_connections + _OTHER_FILES)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=GRACE_S,
        **server_options(settings.connection_limits),
    )
    server = _Server(config, app.state.backend.event_streams)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again at the end; exit with 0
    with suppress(KeyboardInterrupt):
        server.run()
    return int(app.state.exit_code) if server.started else _NOT_STARTED


def _raise_open_files_limit(wanted: int) -> None:
    """Raise the limit on open files as far as the hard limit allows. Warn if that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        logger.warning("%d open files are allowed, but MAX_CONNECTIONS may need %d", hard, wanted)
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
