"""Print the process id and never finish being imported, as where the network that holds torch hangs."""

from __future__ import annotations

import os
import signal
import sys

sys.stdout.write(f"{os.getpid()} {sys.argv[1:]}\n")
sys.stdout.flush()
signal.pause()
