"""Another tenant, who polls: `python -m tests.attacks.bystander URL KEY JOB`, until its standard input ends.

It prints, as JSON, how many seconds each GET of its job and of `/livez` took, and the statuses.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

EVERY_S = 0.25
TIMEOUT_S = 60.0
AT_ONCE = 100  # a request is sent in time even while earlier ones wait


def ask(url: str, key: str) -> tuple[int, float]:
    """Send one GET over a new connection, as a load balancer does; return its status and seconds.

    A request that fails counts as status 0.
    """
    parts = urlsplit(url)
    began = time.monotonic()
    connection = HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path, headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        answer.read()
        status = answer.status
    except (OSError, HTTPException):
        status = 0
    finally:
        connection.close()
    return status, time.monotonic() - began


def _stop_at_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main(url: str, key: str, job_id: str) -> None:
    """Poll until standard input ends, then print what was found."""
    stop = threading.Event()
    threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    paths = {"job": f"/jobs/{job_id}", "livez": "/livez"}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = []
        while not stop.wait(EVERY_S):
            asked.append({name: pool.submit(ask, f"{url}{path}", key) for name, path in paths.items()})
        found = {name: [futures[name].result() for futures in asked] for name in paths}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
