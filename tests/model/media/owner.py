"""A program that has something decoded for ever, and says so: it is killed meanwhile."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import psutil

from model.media.sandbox import Sandbox
from tests.waiting import wait_until


def decode(sandbox: Sandbox) -> None:
    with sandbox.decode("hang", Path(sys.executable), 60.0, {}):
        pass


if __name__ == "__main__":
    probing = Sandbox(decoders="tests.model.media.probes")
    probing.start()
    threading.Thread(target=decode, args=[probing], daemon=True).start()
    wait_until(lambda: len(psutil.Process().children(recursive=True)) == 2)
    sys.stdout.write(" ".join(str(child.pid) for child in psutil.Process().children(recursive=True)) + "\n")
    sys.stdout.flush()
    threading.Event().wait()
