"""Run stages on the device, and send what they measure: `benchmarks.first_contact` starts this program.

It sends `(stage, limit_s)` when a stage begins, `(stage, name, value)` for each measurement, and `()` at the
end. A stage that fails sends its error, and the next one runs unless the device is broken for this process.
"""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Callable, Collection, Iterable
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.gpu_cases import STAGES, Rig, Stage

Send = Callable[[tuple[object, ...]], object]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. The process has then nothing to clean up."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_stages", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rounds", type=int)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--only", choices=[stage.name for stage in STAGES], action="append")
    parser.add_argument(
        "--after", choices=[stage.name for stage in STAGES], help="run the stages after this one"
    )
    parser.add_argument("descriptor", type=int, help="of the pipe to write to")
    options = parser.parse_args(arguments)
    os.set_inheritable(options.descriptor, False)  # the pipe closes when this process ends
    rig = Rig.prepare(toy=options.toy, rounds=options.rounds, folder=options.folder)
    with Connection(options.descriptor, readable=False) as messages:
        run(wanted(options.only, options.after), rig, messages.send)
        messages.send(())


def wanted(only: Collection[str] | None, after: str | None) -> list[Stage]:
    """Return the stages that are wanted, without those up to `after`."""
    names = [stage.name for stage in STAGES]
    first = 0 if after is None else names.index(after) + 1
    return [stage for stage in STAGES[first:] if only is None or stage.name in only]


def run(stages: Iterable[Stage], rig: Rig, send: Send) -> None:
    """Run the stages in turn. Raises what the device says if a stage has broken it."""
    for stage in stages:
        send((stage.name, stage.limit_s))
        try:
            for name, value in stage.measure(rig):
                send((stage.name, name, value))
        except Exception as error:  # noqa: BLE001 - the next stages may still work
            traceback.print_exc()
            send((stage.name, "error", f"{type(error).__name__}: {error}"[:500]))
        rig.release()


if __name__ == "__main__":
    main()
