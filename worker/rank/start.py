"""Start a rank: `python -m worker.rank.start MODULE SETUP PARENT_PID`, run by torchrun for each GPU.

Importing torch takes seconds, in which the parent may die, and may hang where a network holds the files. So
the rank is bound to its parent before its module is imported.
"""

from __future__ import annotations

import runpy
import sys

from worker.process import die_with_parent


def main(module: str, setup: str, parent_pid: str) -> None:
    """Run `MODULE SETUP` in this process, which is killed when the parent ends."""
    die_with_parent(int(parent_pid))
    sys.argv = [module, setup]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
