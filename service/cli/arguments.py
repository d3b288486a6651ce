"""Define the command line of `longcat`, and translate it to the fields of `POST /generate`.

Options of the video come from `model.spec.params`.
"""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import shtab

from jobs.order import Priority
from jobs.record import Status
from longcat_video_client import JobVideo
from model.spec.arguments import add_arguments, options_of
from model.spec.params import Task
from service.version import installed_version

EXIT_CODES = """exit codes, of several failures the first:
  0  done
  1  the job failed
  2  the command line is not valid
  3  the service refused the request, or knows no such job
  4  the service cannot be reached, or cannot serve now
  5  the job was cancelled
  6  a file here cannot be read or written
  130  interrupted; the job continues
  141  the program that read the output has closed it; the job continues
"""
_INPUTS = {
    "image": (
        "FILE|job:ID[:FRAME]",
        "the first frame, - for standard input; of a job, the last frame of its video, or this one",
    ),
    "video": (
        "FILE|job:ID",
        "the clip to continue or to refine, - for standard input, or the job whose video is",
    ),
    "condition_video": (
        "FILE|job:ID",
        "for refine: the clip that the start of the refined video must match",
    ),
}
_JOB = re.compile(r"job:([^:]+)(?::(-?[0-9]+))?")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    root = argparse.ArgumentParser(
        prog="longcat",
        description="Request videos from a LongCat-Video service.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"longcat {installed_version()}")
    root.add_argument("--url", help="URL of the service; default: LONGCAT_URL, or http://127.0.0.1:8000")
    root.add_argument("--api-key", help="default: LONGCAT_API_KEY")
    root.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="S",
        help="how many seconds to wait for a service that cannot be reached",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", help="request a video, wait for it and save it")
    generate.add_argument(
        "prompt",
        nargs="+",
        help="what the video should show, or - to read it from standard input; several: one for each segment",
    )
    generate.add_argument(
        "--preset", metavar="NAME", help="begin with the options of this preset; others replace them"
    )
    _add_request(generate)
    retry = commands.add_parser("retry", help="request the videos of jobs again, with changes")
    _add_jobs(retry)
    retry.add_argument("--prompt", nargs="+", help="another prompt; several: one for each segment")
    _add_request(retry)
    _add_presets(commands.add_parser("presets", help="list, save and delete named options of requests"))
    _add_jobs(commands.add_parser("status", help="show jobs as JSON"))
    cancel = commands.add_parser("cancel", help="stop jobs")
    _add_jobs(cancel)
    cancel.add_argument("--batch", action="store_true", help="stop all jobs that were requested with them")
    _add_json(cancel)
    delete = commands.add_parser(
        "delete", help="remove jobs and their videos; running ones are stopped first"
    )
    _add_jobs(delete)
    _add_json(delete)
    download = commands.add_parser("download", help="wait for jobs and save their videos")
    _add_jobs(download)
    _add_json(download)
    _add_output(download)
    timeline = commands.add_parser("timeline", help="save a trace of jobs for Perfetto")
    _add_jobs(timeline)
    _add_output(timeline, "timeline.json")
    listing = commands.add_parser("list", help="show jobs, newest first")
    listing.add_argument(
        "--status", action="append", choices=get_args(Status), help="may be given several times"
    )
    listing.add_argument("--task", choices=get_args(Task))
    listing.add_argument("--text", help="part of a prompt")
    for name, purpose in (("after", "at this time or later"), ("before", "before this time")):
        listing.add_argument(
            f"--created-{name}",
            type=_time,
            metavar="TIME",
            help=f"submitted {purpose}, such as 2026-03-02T08:00Z",
        )
    listing.add_argument("--batch", metavar="ID", help="the jobs of one request for several videos")
    listing.add_argument("--owner", help="the jobs of this owner; with the key of an admin")
    listing.add_argument("--limit", type=int, default=20)
    _add_json(listing)
    _add_json(commands.add_parser("usage", help="show the GPU time and the cost of each day"))
    commands.add_parser("capability", help="show what can be requested as JSON")
    completion = commands.add_parser("completion", help="print a script that completes commands in a shell")
    completion.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return root


def options_of_video(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `POST /generate` that were given, without prompts and files."""
    fields = options_of(arguments)
    if arguments.metadata:
        fields["metadata"] = dict(arguments.metadata)
    for name in ("num_videos", "model", "priority", "deadline_s", "refuse_if_late", "webhook_url"):
        if (value := getattr(arguments, name)) is not None:
            fields[name] = value
    return fields


def _add_jobs(command: argparse.ArgumentParser) -> None:
    command.add_argument("jobs", nargs="+", metavar="job")


def _add_request(command: argparse.ArgumentParser) -> None:
    for name, (form, purpose) in _INPUTS.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=_input, metavar=form, help=purpose)
    _add_options(command)
    command.add_argument(
        "--idempotency-key",
        metavar="KEY",
        help="running the command again with the same key creates no new job",
    )
    command.add_argument("--no-wait", action="store_true", help="print the job's id and exit")
    _add_json(command)
    _add_output(command)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_presets(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", metavar="ACTION")
    _add_json(command)
    actions.add_parser("list", help="show all presets; the default")
    save = actions.add_parser("save", help="store options under a name")
    save.add_argument("name")
    save.add_argument("--prompt", nargs="+", help="a prompt; several: one for each segment")
    _add_options(save)
    actions.add_parser("delete", help="delete a preset").add_argument("name")


def _add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of a request, except its input files."""
    command.add_argument(
        "--num-videos", type=int, metavar="N", help="videos to make, with seeds that follow each other"
    )
    command.add_argument("--model", metavar="NAME", help="default: the service chooses")
    add_arguments(command)
    job = command.add_argument_group("job")
    job.add_argument("--priority", choices=get_args(Priority))
    job.add_argument(
        "--deadline-s", type=float, metavar="SECONDS", help="when the video is wanted, from submission"
    )
    job.add_argument(
        "--refuse-if-late",
        action="store_true",
        default=None,
        help="refuse the request if the video cannot be expected by its deadline",
    )
    job.add_argument("--webhook-url", metavar="URL", help="notified when the job's status changes")
    job.add_argument(
        "--metadata", type=_pair, action="append", metavar="NAME=VALUE", help="stored with the job"
    )


def _add_output(command: argparse.ArgumentParser, default: str = "JOB.mp4") -> None:
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help=f"- is standard output; default: {default}; of several videos, FILE-SEED",
    )


def _input(text: str) -> Path | JobVideo:
    """Return the file, or the job that is named as `job:ID` or `job:ID:FRAME`."""
    if not text.startswith("job:"):
        return Path(text)
    match = _JOB.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError("must be job:ID or job:ID:FRAME; a file of such a name is ./job:…")
    return JobVideo(match[1], None if match[2] is None else int(match[2]))


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.astimezone()


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    return name, value
