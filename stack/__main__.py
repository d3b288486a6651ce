"""`python -m stack serve|demo`: the command line, and how it ends."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from jobs.settings import PREFIX
from stack import demo, serve
from stack.errors import StackError
from stack.settings import StackSettings

ASK_AGAIN_S = 0.05


def main() -> int:
    """Run a command; 0 if all went well; 1, or 2 for a wrong setting, with a line on stderr."""
    arguments = _parser().parse_args()
    logging.basicConfig(format="stack  | %(message)s")
    listen()
    try:
        settings = StackSettings()
        return serve.run(settings) if arguments.command == "serve" else demo.run(settings, arguments.out)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            _complain(f"{PREFIX}{str(problem['loc'][0]).upper()}: {problem['msg']}")
        return 2
    except StackError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:  # in the middle of a demo
        return 130


def listen() -> None:
    """Have SIGINT, also where it came ignored, SIGTERM and SIGHUP raise KeyboardInterrupt."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(name, _interrupt)


def _complain(text: str) -> None:
    print(f"stack: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="Redis, the API and one worker in the foreground, until Ctrl-C")
    ordered = commands.add_parser("demo", help="order a film by a prompt and one by an image")
    ordered.add_argument("--out", type=Path, default=Path("out"), help="folder for the films")
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number
    if _is_finaliser(frame):  # what is raised there is lost
        signal.setitimer(signal.ITIMER_REAL, ASK_AGAIN_S)
    else:
        raise KeyboardInterrupt


def _is_finaliser(frame: FrameType | None) -> bool:
    """Whether this, or what called it, is a `__del__`."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    sys.exit(main())
