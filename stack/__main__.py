"""The commands `python -m stack serve` and `python -m stack demo`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from jobs.settings import InvalidSettings
from longcat_video_client import LongCatVideoError
from stack import demo, serve
from stack.errors import StackError
from stack.settings import StackSettings

RETRY_INTERRUPT_S = 0.05


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 after an error, 2 for an invalid setting."""
    arguments = _parser().parse_args(words)
    logging.basicConfig(format="stack  | %(message)s")
    interrupt_on_signals()
    try:
        settings = StackSettings.read()
        if arguments.command == "serve":
            return serve.run(settings)
        return demo.run(settings, arguments.out, sys.stdout)
    except InvalidSettings as error:
        print(error, file=sys.stderr)
        return 2
    except (StackError, LongCatVideoError) as error:
        _print_error(str(error))
        return 1
    except KeyboardInterrupt:  # during the demo
        return 130


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt on SIGINT (even if it was ignored), SIGTERM and SIGHUP."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(name, _interrupt)


def _print_error(text: str) -> None:
    print(f"stack: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stack", description="Run the whole service on one machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run Redis, the API and one worker until Ctrl-C")
    demo_command = commands.add_parser("demo", help="make a video from a prompt and one from an image")
    demo_command.add_argument("--out", type=Path, default=Path("out"), help="folder for the videos")
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number
    if _is_in_finalizer(frame):  # Python discards exceptions raised there: raise it a little later
        signal.setitimer(signal.ITIMER_REAL, RETRY_INTERRUPT_S)
    else:
        raise KeyboardInterrupt


def _is_in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    sys.exit(main())
