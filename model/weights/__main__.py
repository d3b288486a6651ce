"""Describe, check and fetch weights: `python -m model.weights manifest|verify|fetch`.

The exit status is 0 if all is well, 1 if `verify` finds a difference, 2 after an error, and 130 after SIGINT
or SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
from contextlib import closing
from pathlib import Path

from model.spec.errors import ModelError
from model.weights.fetch import FetchOptions, fetch
from model.weights.manifest import MANIFEST, describe, verify
from model.weights.open import open_source
from model.weights.source import S3Access

EXIT_DIFFERENT, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the first process of a container needs one
    try:
        match options.command:
            case "manifest":
                return _write_manifest(options.folder)
            case "verify":
                return _verify(options.folder)
            case _:
                return _fetch(options)
    except (ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _write_manifest(folder: Path) -> int:
    manifest = describe(folder)
    manifest.write(folder)
    print(
        f"{folder / MANIFEST}: {len(manifest.files)} files, {sum(f.size_bytes for f in manifest.files)} bytes"
    )
    return 0


def _verify(folder: Path) -> int:
    problems = verify(folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{folder} is as in its {MANIFEST}")
        return 0
    print(
        f"{folder} differs from its {MANIFEST}. What is missing or damaged can be downloaded again:\n"
        f"python -m model.weights fetch --verify SOURCE {shlex.quote(str(folder))}"
    )
    return EXIT_DIFFERENT


def _fetch(options: argparse.Namespace) -> int:
    access = S3Access(
        options.s3_endpoint_url,
        options.s3_region,
        _read_secret(options.s3_access_key_id_file),
        _read_secret(options.s3_secret_access_key_file),
    )
    with closing(open_source(options.source, options.connections, access)) as source:
        fetch(source, options.folder, FetchOptions(verify=options.verify, connections=options.connections))
    return 0


def _read_secret(path: Path | None) -> str | None:
    return path.read_text().strip() if path else None


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m model.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, explanation in (
        ("manifest", f"write {MANIFEST}, which lists all files with sizes and hashes"),
        ("verify", f"check the files against {MANIFEST}"),
    ):
        command = commands.add_parser(name, help=explanation, description=explanation)
        command.add_argument("folder", type=Path, metavar="DIR", help="the folder of the weights")
    explanation = "download what is missing or differs"
    command = commands.add_parser(
        "fetch",
        help=explanation,
        description=f"{explanation}; leave a complete folder as it is while its source is unavailable",
    )
    command.add_argument(
        "source", metavar="SOURCE", help="s3://bucket/prefix, or the https:// URL of a folder"
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="the folder of the weights")
    command.add_argument(
        "--verify",
        action="store_true",
        help="hash the files of a complete folder as well, and download again what is damaged",
    )
    command.add_argument("--connections", type=_positive, default=FetchOptions.connections, metavar="N")
    command.add_argument("--s3-endpoint-url", metavar="URL", help="an S3 server other than AWS")
    command.add_argument("--s3-region", metavar="REGION")
    command.add_argument(
        "--s3-access-key-id-file", type=Path, metavar="FILE", help="default: boto3's own keys"
    )
    command.add_argument("--s3-secret-access-key-file", type=Path, metavar="FILE")
    return parser


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise ValueError("not positive")
    return number


if __name__ == "__main__":
    sys.exit(main())
