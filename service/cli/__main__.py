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
from typing import Any, cast
from unicodedata import category

import shtab
from pydantic import ValidationError

from longcat_video_client import Client, Job, LongCatVideoError, RetryPolicy
from longcat_video_client.calls import Filters
from longcat_video_client.downloads import check_destination
from service.cli.arguments import options_of_video, parser
from service.cli.errors import EXIT_CODES, FileError, JobErrors, SomeFailed, exit_code_of, file_errors
from service.cli.json_output import as_json, print_json
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
    if names := _options_of_one_job(arguments):
        parser().error(f"{names}: cannot be used with several jobs")
    if arguments.command == "completion":
        print(shtab.complete(parser(), arguments.shell))
        return 0
    options = {name: getattr(arguments, name) for name in ("url", "api_key") if getattr(arguments, name)}
    try:
        settings = CliSettings(**options)
    except ValidationError as error:
        parser().error(f"the URL of the service: {error.errors()[0]['msg']}")
    return _run(arguments, settings)


def _run(arguments: argparse.Namespace, settings: CliSettings) -> int:
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
    except SomeFailed as error:
        return exit_code_of(error.first)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:  # of standard output: those of files are FileErrors
        _discard_output()
        if isinstance(error, BrokenPipeError):
            return _CLOSED_PIPE
        print(f"cannot write to standard output: {error.strerror}", file=sys.stderr)
        return EXIT_CODES[FileError]
    return 0


def _options_of_one_job(arguments: argparse.Namespace) -> str:
    """Return the options that can be used with one job only, if several are named."""
    if arguments.command not in {"download", "retry"} or len(arguments.jobs) == 1:
        return ""
    given = [name for name in ("output", "idempotency_key") if getattr(arguments, name, None) is not None]
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def _discard_output() -> None:
    """Send buffered output to /dev/null, so that the interpreter does not report the error again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _generate(client: Client, arguments: argparse.Namespace) -> None:
    fields = options_of_video(arguments)
    if arguments.preset is not None:
        prompts = arguments.prompt
        given = {"prompt": prompts[0]} if len(prompts) == 1 else {"prompts": prompts}
        fields = client.presets.get(arguments.preset).with_changes({**fields, **given})
    if not arguments.no_wait:
        _check_output(arguments, fields.get("num_videos", 1))
    job = _submit(client.submit, arguments, fields)
    _finish(client, arguments, [job], JobErrors(in_json=arguments.json))


def _retry(client: Client, arguments: argparse.Namespace) -> None:
    fields = options_of_video(arguments)
    if not arguments.no_wait:
        _check_output(arguments, fields.get("num_videos", 1))
    errors = JobErrors(in_json=arguments.json and not arguments.no_wait)
    jobs = [
        errors.attempt(job_id, partial(_submit, partial(client.jobs.retry, job_id), arguments, fields))
        for job_id in arguments.jobs
    ]
    _finish(client, arguments, [job for job in jobs if job], errors)


def _submit(submit: Callable[..., Job], arguments: argparse.Namespace, fields: dict[str, Any]) -> Job:
    """Submit the prompt, the options and the input files of the command line."""
    with file_errors("read"):
        return submit(
            prompt=_prompt(arguments),
            idempotency_key=arguments.idempotency_key,
            extra=fields,
            image=arguments.image,
            video=arguments.video,
            condition_video=arguments.condition_video,
        )


def _finish(client: Client, arguments: argparse.Namespace, submitted: list[Job], errors: JobErrors) -> None:
    """Print the jobs of requests, or unless told otherwise, wait for them and save their videos.

    Raises SomeFailed.
    """
    job_ids = [job_id for job in submitted for job_id in job.all_ids]
    if arguments.no_wait:
        if arguments.json:
            print_json([*(as_json(client.jobs.get(job_id)) for job_id in job_ids), *errors.reports])
        else:
            print("".join(f"{job_id}\n" for job_id in job_ids), end="")
        errors.raise_any()
        return
    if job_ids:
        print("job", *job_ids, file=sys.stderr)
    for job in submitted:
        for number, job_id in enumerate(job.all_ids):
            output = arguments.output
            if output and job.batch:
                output = output.with_stem(f"{output.stem}-{(job.request.seed or 0) + number}")
            errors.attempt(job_id, partial(_save, client, job_id, output, in_json=arguments.json))
    errors.raise_any()


def _download(client: Client, arguments: argparse.Namespace) -> None:
    _check_output(arguments)
    errors = JobErrors(in_json=arguments.json)
    for job_id in arguments.jobs:
        errors.attempt(job_id, partial(_save, client, job_id, arguments.output, in_json=arguments.json))
    errors.raise_any()


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
        print_json({**as_json(job), "path": str(path)})
    else:
        print(path)


def _check_output(arguments: argparse.Namespace, num_videos: int = 1) -> None:
    """Raise FileError before videos are generated, not after."""
    if arguments.output == _STANDARD_OUTPUT:
        if arguments.json:
            raise FileError("cannot write both JSON and a video to standard output")
        if num_videos > 1:
            raise FileError("cannot write several videos to standard output")
        return
    path = arguments.output or _default_output("JOB")
    with file_errors("write", path):
        check_destination(path)


def _default_output(job_id: str) -> Path:
    return Path(f"{job_id}.mp4")


def _timeline(client: Client, arguments: argparse.Namespace) -> None:
    errors = JobErrors()
    timelines = [errors.attempt(job_id, partial(client.jobs.timeline, job_id)) for job_id in arguments.jobs]
    events = [event for timeline in timelines if timeline for event in timeline["traceEvents"]]
    if events:
        _write_trace(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), arguments.output)
    errors.raise_any()


def _write_trace(trace: str, output: Path | None) -> None:
    if output == _STANDARD_OUTPUT:
        print(trace)
        return
    path = output or Path("timeline.json")
    with file_errors("write", path):
        path.write_text(trace)
    print(path)


def _status(client: Client, arguments: argparse.Namespace) -> None:
    errors = JobErrors(in_json=len(arguments.jobs) > 1)
    for job_id in arguments.jobs:
        if job := errors.attempt(job_id, partial(client.jobs.get, job_id)):
            print_json(as_json(job))
    errors.raise_any()


def _cancel(client: Client, arguments: argparse.Namespace) -> None:
    cancel = (
        partial(_cancel_batch, client) if arguments.batch else lambda job_id: (client.jobs.cancel(job_id),)
    )
    errors = JobErrors(in_json=arguments.json)
    for job_id in arguments.jobs:
        for job in errors.attempt(job_id, partial(cancel, job_id)) or ():
            if arguments.json:
                print_json(as_json(job))
            else:
                print(*([job.id] if len(arguments.jobs) > 1 else []), job.status, sep="  ")
    errors.raise_any()


def _cancel_batch(client: Client, job_id: str) -> tuple[Job, ...]:
    """Cancel all jobs that were requested with a job, or the job alone if there are no others."""
    batch = client.jobs.get(job_id).batch
    return client.jobs.cancel_batch(batch.id) if batch else (client.jobs.cancel(job_id),)


def _delete(client: Client, arguments: argparse.Namespace) -> None:
    errors = JobErrors(in_json=arguments.json)
    for job_id in arguments.jobs:
        errors.attempt(job_id, partial(_delete_one, client, job_id, in_json=arguments.json))
    errors.raise_any()


def _delete_one(client: Client, job_id: str, *, in_json: bool) -> None:
    client.jobs.delete(job_id)
    if in_json:
        print_json({"id": job_id, "deleted": True})


def _list(client: Client, arguments: argparse.Namespace) -> None:
    filters = cast(Filters, {name: getattr(arguments, name) for name in Filters.__annotations__})
    jobs = list(client.jobs.list(limit=arguments.limit, **filters))
    if arguments.json:
        print_json([as_json(job) for job in jobs])
        return
    has_several_owners = len({job.owner for job in jobs}) > 1
    for job in jobs:
        owner = [job.owner] if has_several_owners else []
        print(job.id, _created_at(job), f"{describe_stage(job):<16}", *owner, _first_prompt(job), sep="  ")


def _usage(client: Client, arguments: argparse.Namespace) -> None:
    usage = client.usage()
    if arguments.json:
        print_json([each.model_dump(mode="json") for each in usage])
        return
    for each in usage:
        costs = [f"{amount:.2f} {currency}" for currency, amount in each.costs.items()]
        print(each.day, f"{each.gpu_s:.1f} s", *costs, each.owner, sep="  ")


def _capability(client: Client, _: argparse.Namespace) -> None:
    print_json(as_json(client.capability()))


def _presets(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.action == "save":
        fields = options_of_video(arguments)
        preset = client.presets.save(arguments.name, prompt=_prompt(arguments), extra=fields)
        print(preset.name)
    elif arguments.action == "delete":
        client.presets.delete(arguments.name)
    elif arguments.json:
        print_json({preset.name: preset.options for preset in client.presets.all()})
    else:
        for preset in client.presets.all():
            print(preset.name, json.dumps(preset.options, ensure_ascii=False), sep="  ")


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
    """Return the prompt on one line. Control characters of another owner must not reach the terminal."""
    prompt = job.request.prompt or next(iter(job.request.prompts or ()), "")
    return "".join(" " if category(character) == "Cc" else character for character in prompt)


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
