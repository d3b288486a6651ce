"""Run the commands of `longcat`, which is also `python -m service.cli`.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import shtab
from pydantic import BaseModel, ValidationError

from longcat_video_client import Client, Job, JobCancelled, JobFailed, LongCatVideoError, RetryPolicy
from longcat_video_client.downloads import check_destination
from service.cli.arguments import options_of_video, parser
from service.cli.errors import EXIT_CODES, FileError, exit_code_of, file_errors
from service.cli.outage import OutageNotice
from service.cli.progress import ProgressBar, describe_stage
from service.cli.settings import CliSettings

_INTERRUPTED = 130
_CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE killed
_STANDARD_INPUT = _STANDARD_OUTPUT = Path("-")
_INPUTS = ("image", "video", "condition_video")


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, which `--help` explains."""
    arguments = parser().parse_args(words)
    if arguments.command == "completion":
        print(shtab.complete(parser(), arguments.shell))
        return 0
    options = {name: getattr(arguments, name) for name in ("url", "api_key") if getattr(arguments, name)}
    try:
        settings = CliSettings(**options)
    except ValidationError as error:
        parser().error(f"the URL of the service: {error.errors()[0]['msg']}")
    key = settings.api_key.get_secret_value() if settings.api_key else None
    try:
        _read_standard_input(arguments)
        retry = RetryPolicy(total_s=arguments.patience, on_retry=OutageNotice(str(settings.url), sys.stderr))
        with Client(str(settings.url), key, retry=retry) as client:
            _COMMANDS[arguments.command](client, arguments)
        sys.stdout.flush()
    except (LongCatVideoError, FileError) as error:
        print(error, file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:  # of standard output: those of files are FileErrors
        _discard_output()
        if isinstance(error, BrokenPipeError):
            return _CLOSED_PIPE
        print(f"cannot write to standard output: {error.strerror}", file=sys.stderr)
        return EXIT_CODES[FileError]
    return 0


def _discard_output() -> None:
    """Send buffered output to /dev/null, so that the interpreter does not report the error again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _generate(client: Client, arguments: argparse.Namespace) -> None:
    fields = options_of_video(arguments)
    if arguments.preset is not None:
        prompts = arguments.prompt
        given = {"prompt": prompts[0]} if len(prompts) == 1 else {"prompts": prompts}
        fields = client.presets.get(arguments.preset).with_changes({**fields, **given})
    _request(client, arguments, client.submit, fields)


def _retry(client: Client, arguments: argparse.Namespace) -> None:
    _request(client, arguments, partial(client.jobs.retry, arguments.job), options_of_video(arguments))


def _request(
    client: Client, arguments: argparse.Namespace, submit: Callable[..., Job], fields: dict[str, Any]
) -> None:
    """Submit a job, and unless told otherwise, wait for it and save its video."""
    if not arguments.no_wait:
        _check_output(arguments.output, fields.get("num_videos", 1))
    if arguments.json and arguments.output == _STANDARD_OUTPUT:
        raise FileError("cannot write both JSON and a video to standard output")
    with file_errors("read"):
        job = submit(
            prompt=_prompt(arguments),
            idempotency_key=arguments.idempotency_key,
            extra=fields,
            image=arguments.image,
            video=arguments.video,
            condition_video=arguments.condition_video,
        )
    if arguments.no_wait:
        if arguments.json:
            _print_json([_as_json(client.jobs.get(job_id)) for job_id in job.all_ids])
        else:
            print(*job.all_ids, sep="\n")
        return
    print("job", *job.all_ids, file=sys.stderr)
    if job.batch:
        _save_all(client, job, arguments.output, in_json=arguments.json)
    else:
        _save(client, job.id, arguments.output, in_json=arguments.json)


def _download(client: Client, arguments: argparse.Namespace) -> None:
    _check_output(arguments.output)
    _save(client, arguments.job, arguments.output)


def _save(client: Client, job_id: str, output: Path | None, *, in_json: bool = False) -> None:
    """Wait for a job and save its video. Print where, or the job in JSON."""
    with ProgressBar(sys.stderr, sys.stderr.isatty()) as bar:
        job = client.jobs.wait(job_id, on_update=bar.show)
    job.result_or_raise()
    if output == _STANDARD_OUTPUT:
        client.jobs.download(job, sys.stdout.buffer)
        return
    path = output or _default_output(job_id)
    with file_errors("write", path):
        client.jobs.download(job, path)
    if in_json:
        _print_json({**_as_json(job), "path": str(path)})
    else:
        print(path)


def _save_all(client: Client, job: Job, output: Path | None, *, in_json: bool) -> None:
    """Wait for all jobs of a batch, save the videos of those that succeed, and raise the first error."""
    failures: list[LongCatVideoError] = []
    for number, job_id in enumerate(job.all_ids):
        seed = (job.request.seed or 0) + number
        path = output and output.with_stem(f"{output.stem}-{seed}")
        try:
            _save(client, job_id, path, in_json=in_json)
        except (JobFailed, JobCancelled) as error:
            failures.append(error)
    for failure in failures[1:]:
        print(failure, file=sys.stderr)
    if failures:
        raise failures[0]


def _check_output(output: Path | None, num_videos: int = 1) -> None:
    """Raise FileError before videos are generated, not after."""
    if output == _STANDARD_OUTPUT:
        if num_videos > 1:
            raise FileError("cannot write several videos to standard output")
        return
    path = output or _default_output("JOB")
    with file_errors("write", path):
        check_destination(path)


def _default_output(job_id: str) -> Path:
    return Path(f"{job_id}.mp4")


def _timeline(client: Client, arguments: argparse.Namespace) -> None:
    timelines = [client.jobs.timeline(job_id) for job_id in arguments.jobs]
    events = [event for timeline in timelines for event in timeline["traceEvents"]]
    trace = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
    if arguments.output == _STANDARD_OUTPUT:
        print(trace)
        return
    path = arguments.output or Path("timeline.json")
    with file_errors("write", path):
        path.write_text(trace)
    print(path)


def _status(client: Client, arguments: argparse.Namespace) -> None:
    _print_json(_as_json(client.jobs.get(arguments.job)))


def _cancel(client: Client, arguments: argparse.Namespace) -> None:
    batch = client.jobs.get(arguments.job).batch if arguments.batch else None
    jobs = client.jobs.cancel_batch(batch.id) if batch else (client.jobs.cancel(arguments.job),)
    for job in jobs:
        print(job.status)


def _delete(client: Client, arguments: argparse.Namespace) -> None:
    for job_id in arguments.jobs:
        client.jobs.delete(job_id)


def _list(client: Client, arguments: argparse.Namespace) -> None:
    jobs = list(
        client.jobs.list(
            limit=arguments.limit,
            status=arguments.status,
            task=arguments.task,
            text=arguments.text,
            created_after=arguments.created_after,
            created_before=arguments.created_before,
            batch=arguments.batch,
            owner=arguments.owner,
        )
    )
    if arguments.json:
        _print_json([_as_json(job) for job in jobs])
        return
    has_several_owners = len({job.owner for job in jobs}) > 1
    for job in jobs:
        owner = [job.owner] if has_several_owners else []
        print(job.id, _created_at(job), f"{describe_stage(job):<16}", *owner, _first_prompt(job), sep="  ")


def _usage(client: Client, arguments: argparse.Namespace) -> None:
    usage = client.usage()
    if arguments.json:
        _print_json([each.model_dump(mode="json") for each in usage])
        return
    for each in usage:
        costs = [f"{amount:.2f} {currency}" for currency, amount in each.costs.items()]
        print(each.day, f"{each.gpu_s:.1f} s", *costs, each.owner, sep="  ")


def _capability(client: Client, _: argparse.Namespace) -> None:
    _print_json(_as_json(client.capability()))


def _presets(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.action == "save":
        fields = options_of_video(arguments)
        preset = client.presets.save(arguments.name, prompt=_prompt(arguments), extra=fields)
        print(preset.name)
    elif arguments.action == "delete":
        client.presets.delete(arguments.name)
    elif arguments.json:
        _print_json({preset.name: preset.options for preset in client.presets.all()})
    else:
        for preset in client.presets.all():
            print(preset.name, json.dumps(preset.options, ensure_ascii=False), sep="  ")


def _as_json(reply: BaseModel) -> dict[str, Any]:
    return reply.model_dump(mode="json", exclude_unset=True)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _read_standard_input(arguments: argparse.Namespace) -> None:
    """Replace the `-` among the prompts and inputs by what is read. Raises FileError if there are several."""
    prompts: list[str] = getattr(arguments, "prompt", None) or []
    inputs = [name for name in _INPUTS if getattr(arguments, name, None) == _STANDARD_INPUT]
    if prompts.count("-") + len(inputs) > 1:
        raise FileError("standard input can be read only once: there is more than one -")
    if prompts:
        arguments.prompt = [_read_prompt() if text == "-" else text for text in prompts]
    for name in inputs:
        setattr(arguments, name, sys.stdin.buffer.read())


def _read_prompt() -> str:
    """Read a prompt from standard input. Raises FileError."""
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise FileError("standard input is not text") from error


def _prompt(arguments: argparse.Namespace) -> str | list[str] | None:
    """Return the prompt, one for each segment if there are several, or None."""
    prompts: list[str] | None = arguments.prompt
    return prompts[0] if prompts and len(prompts) == 1 else prompts


def _created_at(job: Job) -> str:
    return job.created_at.isoformat().replace("+00:00", "Z") if job.created_at else ""


def _first_prompt(job: Job) -> str:
    return job.request.prompt or next(iter(job.request.prompts or ()), "")


_COMMANDS = {
    "generate": _generate,
    "retry": _retry,
    "download": _download,
    "timeline": _timeline,
    "status": _status,
    "cancel": _cancel,
    "delete": _delete,
    "list": _list,
    "usage": _usage,
    "capability": _capability,
    "presets": _presets,
}

if __name__ == "__main__":
    sys.exit(main())
