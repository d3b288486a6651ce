"""The commands of `python -m service.cli`: results go to standard output, all else to standard error."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from service.cli.arguments import fields_of, files_of, parser
from service.cli.client import Client
from service.cli.errors import CliError, Unusable
from service.cli.progress import Bar, stage
from service.cli.settings import CliSettings

_INTERRUPTED = 130


def main(given: Sequence[str] | None = None) -> int:
    """Run a command; its exit code, which `--help` explains."""
    arguments = parser().parse_args(given)
    named = {name: getattr(arguments, name) for name in ("url", "api_key") if getattr(arguments, name)}
    try:
        settings = CliSettings(**named)
    except ValidationError as error:
        parser().error(f"the URL of the service: {error.errors()[0]['msg']}")
    key = settings.api_key.get_secret_value() if settings.api_key else None
    try:
        with Client.of(str(settings.url), key, arguments.patience) as client:
            _COMMANDS[arguments.command](client, arguments)
    except CliError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _generate(client: Client, arguments: argparse.Namespace) -> None:
    _check_folder(arguments.output)
    job = client.order(fields_of(arguments), files_of(arguments), arguments.idempotency_key)
    if arguments.no_wait:
        print(job["id"])
        return
    print(f"job {job['id']}", file=sys.stderr)
    _save(client, job["id"], arguments.output)


def _download(client: Client, arguments: argparse.Namespace) -> None:
    _check_folder(arguments.output)
    _save(client, arguments.job, arguments.output)


def _save(client: Client, job_id: str, output: Path | None) -> None:
    with Bar(sys.stderr, sys.stderr.isatty()) as bar:
        job = client.follow(job_id, bar.show)
    path = output or Path(f"{job_id}.mp4")
    client.fetch(job, path)
    print(path)


def _check_folder(output: Path | None) -> None:
    """Said before the video is made, not after."""
    if output and not output.parent.is_dir():
        raise Unusable(f"cannot write {output}: there is no folder {output.parent}")


def _timeline(client: Client, arguments: argparse.Namespace) -> None:
    _check_folder(arguments.output)
    found = client.timeline(*arguments.jobs)
    path = arguments.output or Path("timeline.json")
    try:
        path.write_text(json.dumps(found))
    except OSError as error:
        raise Unusable(f"cannot write {path}: {error.strerror}") from error
    print(path)


def _status(client: Client, arguments: argparse.Namespace) -> None:
    print(json.dumps(client.job(arguments.job), indent=2, ensure_ascii=False))


def _cancel(client: Client, arguments: argparse.Namespace) -> None:
    print(client.cancel(arguments.job)["status"])


def _list(client: Client, arguments: argparse.Namespace) -> None:
    query = {"status": arguments.status} if arguments.status else {}
    for job in client.jobs(limit=arguments.limit, **query):
        prompt = job["request"]["prompt"] or job["request"]["prompts"][0]
        print(job["id"], job["created_at"], f"{stage(job):<16}", prompt, sep="  ")


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
