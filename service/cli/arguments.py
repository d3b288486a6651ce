"""The command line of `service.cli`, and what it says in the words of `POST /generate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from jobs.order import Priority, Quality, Task
from jobs.record import Status

EXIT_CODES = """exit codes:
  0  done
  1  the job failed
  2  the command line makes no sense
  3  the service refused the request, or knows no such job
  4  the service cannot be reached, or cannot serve now
  5  the job was cancelled
  6  a file here cannot be read or written
  130  interrupted; the job goes on
"""
_NOT_FIELDS = {"command", "url", "api_key", "patience", "output", "no_wait", "idempotency_key", "metadata"}
_FILES = ("image", "video", "condition_video")


def parser() -> argparse.ArgumentParser:
    """Everything that can be said."""
    root = argparse.ArgumentParser(
        prog="python -m service.cli",
        description="Order videos at a LongCat-Video service.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--url", help="of the service; else LONGCAT_URL, else http://127.0.0.1:8000")
    root.add_argument("--api-key", help="else LONGCAT_API_KEY")
    root.add_argument(
        "--patience", type=float, default=60.0, metavar="S", help="seconds the service may be away"
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands.add_parser("generate", help="order a video, wait for it and save it"))
    for name, purpose in (("status", "show a job as JSON"), ("cancel", "stop a job")):
        commands.add_parser(name, help=purpose).add_argument("job")
    download = commands.add_parser("download", help="wait for a job and save its video")
    download.add_argument("job")
    _add_output(download)
    timeline = commands.add_parser("timeline", help="save what was done for jobs, and when, for Perfetto")
    timeline.add_argument("jobs", nargs="+", metavar="job")
    _add_output(timeline, "timeline.json")
    listing = commands.add_parser("list", help="show jobs, the newest first")
    listing.add_argument("--status", choices=get_args(Status))
    listing.add_argument("--limit", type=int, default=20)
    return root


def fields_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `POST /generate` that were given, without files."""
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    fields = {name: value for name, value in given.items() if name not in {*_NOT_FIELDS, *_FILES}}
    prompts = fields.pop("prompt")
    fields |= {"prompt": prompts[0]} if len(prompts) == 1 else {"prompts": prompts}
    return fields | ({"metadata": dict(arguments.metadata)} if arguments.metadata else {})


def files_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """The files that were given, by field."""
    return {name: path for name in _FILES if (path := getattr(arguments, name)) is not None}


def _add_generate(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompt", nargs="+", help="what is to be seen; several: one for each segment")
    command.add_argument("--task", choices=get_args(Task), help="else inferred from the inputs")
    for name, purpose in (
        ("image", "the first frame"),
        ("video", "the clip to continue or to refine"),
        ("condition-video", "for refine: what the clip's start is held to"),
    ):
        command.add_argument(f"--{name}", type=Path, metavar="FILE", help=purpose)
    command.add_argument("--negative-prompt", help="what is not to be seen")
    command.add_argument("--resolution", help="a table of sizes, as 480p")
    for name in ("height", "width", "num-frames", "num-segments", "num-condition-frames", "seed"):
        command.add_argument(f"--{name}", type=int, metavar="N")
    command.add_argument("--steps", dest="num_inference_steps", type=int, metavar="N")
    command.add_argument("--guidance-scale", type=float, metavar="G")
    command.add_argument("--t-thresh", type=float, metavar="T")
    for name in ("distilled", "refine", "spatial-refine-only"):
        command.add_argument(f"--{name}", action="store_const", const=True)
    command.add_argument("--quality", choices=get_args(Quality), help="balanced: sooner, less exact")
    command.add_argument("--priority", choices=get_args(Priority))
    command.add_argument("--webhook-url", metavar="URL")
    command.add_argument("--metadata", type=_pair, action="append", metavar="NAME=VALUE")
    command.add_argument("--idempotency-key", metavar="KEY", help="makes one job of a command run twice")
    command.add_argument("--no-wait", action="store_true", help="print the job's id and leave")
    _add_output(command)


def _add_output(command: argparse.ArgumentParser, default: str = "JOB.mp4") -> None:
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"else {default}")


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    return name, value
