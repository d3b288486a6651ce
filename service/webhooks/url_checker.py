"""Check at submission that a webhook URL does not lead into our own network.

The check only helps clients to notice a mistake early: the address is checked again whenever a webhook is
sent. So a name that does not resolve now, or not quickly, is accepted, and a slow name server occupies few
threads for a short time.
"""

from __future__ import annotations

from threading import BoundedSemaphore, Thread

from jobs.errors import InvalidRequest
from service.outgoing.addresses import HostNotPublic, HostNotResolved, resolve
from service.outgoing.connection import parse_url

_MAX_LOOKUPS = 8
_LOOKUP_TIMEOUT_S = 1.0
_ANY_PORT = 443  # addresses do not depend on the port


class WebhookUrlChecker:
    """Resolves the hosts of webhook URLs, a few at a time."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._lookups = BoundedSemaphore(_MAX_LOOKUPS)

    def check(self, url: str) -> None:
        """Raise InvalidRequest if the host has an address that is not public."""
        if self._allow_private or not self._lookups.acquire(blocking=False):
            return
        host = parse_url(url).hostname
        assert host
        errors: list[HostNotPublic] = []
        lookup = Thread(target=self._look_up, args=(host, errors), name="webhook-host", daemon=True)
        lookup.start()
        lookup.join(_LOOKUP_TIMEOUT_S)
        if errors:
            raise InvalidRequest(f"webhook_url: {errors[0]}", "webhook_url")

    def _look_up(self, host: str, errors: list[HostNotPublic]) -> None:
        try:
            resolve(host, _ANY_PORT, allow_private=False)
        except HostNotResolved:
            pass
        except HostNotPublic as error:
            errors.append(error)
        finally:
            self._lookups.release()
