"""Run the commands of `python -m service.cli`.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from service.cli.arguments import fields_of, files_of, parser
from service.cli.client import ServiceClient
from service.cli.errors import CliError, FileError
from service.cli.progress import ProgressBar, describe_stage
from service.cli.settings import CliSettings

_INTERRUPTED = 130
_CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE killed
_STANDARD_OUTPUT = Path("-")


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, which `--help` explains."""
    arguments = parser().parse_args(words)
    options = {name: getattr(arguments, name) for name in ("url", "api_key") if getattr(arguments, name)}
    try:
        settings = CliSettings(**options)
    except ValidationError as error:
        parser().error(f"the URL of the service: {error.errors()[0]['msg']}")
    key = settings.api_key.get_secret_value() if settings.api_key else None
    try:
        with ServiceClient.connect(str(settings.url), key, arguments.patience) as client:
            _COMMANDS[arguments.command](client, arguments)
        sys.stdout.flush()
    except CliError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:  # of standard output: those of files are FileErrors
        _discard_output()
        if isinstance(error, BrokenPipeError):
            return _CLOSED_PIPE
        print(f"cannot write to standard output: {error.strerror}", file=sys.stderr)
        return FileError.exit_code
    return 0


def _discard_output() -> None:
    """Send buffered output to /dev/null, so that the interpreter does not report the error again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _generate(client: ServiceClient, arguments: argparse.Namespace) -> None:
    _check_folder(arguments.output)
    job = client.generate(fields_of(arguments), files_of(arguments), arguments.idempotency_key)
    if arguments.no_wait:
        print(job["id"])
        return
    print(f"job {job['id']}", file=sys.stderr)
    _save(client, job["id"], arguments.output)


def _download(client: ServiceClient, arguments: argparse.Namespace) -> None:
    _check_folder(arguments.output)
    _save(client, arguments.job, arguments.output)


def _save(client: ServiceClient, job_id: str, output: Path | None) -> None:
    with ProgressBar(sys.stderr, sys.stderr.isatty()) as bar:
        job = client.wait_for_job(job_id, bar.show)
    if output == _STANDARD_OUTPUT:
        client.receive(job, sys.stdout.buffer.write)
        return
    path = output or Path(f"{job_id}.mp4")
    client.download(job, path)
    print(path)


def _check_folder(output: Path | None) -> None:
    """Raise FileError before the video is generated, not after."""
    if output and not output.parent.is_dir():
        raise FileError(f"cannot write {output}: there is no folder {output.parent}")


def _timeline(client: ServiceClient, arguments: argparse.Namespace) -> None:
    _check_folder(arguments.output)
    found = client.get_timeline(*arguments.jobs)
    if arguments.output == _STANDARD_OUTPUT:
        print(json.dumps(found))
        return
    path = arguments.output or Path("timeline.json")
    try:
        path.write_text(json.dumps(found))
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from error
    print(path)


def _status(client: ServiceClient, arguments: argparse.Namespace) -> None:
    print(json.dumps(client.get_job(arguments.job), indent=2, ensure_ascii=False))


def _cancel(client: ServiceClient, arguments: argparse.Namespace) -> None:
    print(client.cancel(arguments.job)["status"])


def _list(client: ServiceClient, arguments: argparse.Namespace) -> None:
    query = {"status": arguments.status} if arguments.status else {}
    for job in client.list_jobs(limit=arguments.limit, **query):
        prompt = job["request"]["prompt"] or job["request"]["prompts"][0]
        print(job["id"], job["created_at"], f"{describe_stage(job):<16}", prompt, sep="  ")


_COMMANDS = {
    "generate": _generate,
    "download": _download,
    "timeline": _timeline,
    "status": _status,
    "cancel": _cancel,
    "list": _list,
}

if __name__ == "__main__":
    sys.exit(main())
