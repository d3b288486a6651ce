"""Checks at order time that a webhook URL does not lead into our own network.

The check is a courtesy to who ordered: the address is judged again whenever a webhook is sent. So a name that
does not resolve now, or not soon, is accepted, and a slow name server holds few threads, for a short time.
"""

from __future__ import annotations

from threading import BoundedSemaphore, Thread

from jobs.errors import InvalidRequest
from service.inputs.addresses import NotPublic, NotResolved, resolve
from service.inputs.fetch import checked

_LOOKUPS = 8
_PATIENCE_S = 1.0
_ANY_PORT = 443  # the same addresses for all


class WebhookReceivers:
    """Resolves the hosts of webhook URLs, a few at a time."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._lookups = BoundedSemaphore(_LOOKUPS)

    def check(self, url: str) -> None:
        """Raise InvalidRequest if the host is known to have a private address."""
        if self._allow_private or not self._lookups.acquire(blocking=False):
            return
        host = checked(url).hostname
        assert host
        private: list[NotPublic] = []
        lookup = Thread(target=self._judge, args=(host, private), name="webhook-host", daemon=True)
        lookup.start()
        lookup.join(_PATIENCE_S)
        if private:
            raise InvalidRequest(f"webhook_url: {private[0]}", "webhook_url")

    def _judge(self, host: str, private: list[NotPublic]) -> None:
        try:
            resolve(host, _ANY_PORT, allow_private=False)
        except NotResolved:
            pass
        except NotPublic as error:
            private.append(error)
        finally:
            self._lookups.release()
