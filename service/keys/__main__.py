"""Manage API keys and webhook secrets: `python -m service.keys --help`.

Changes take effect immediately in all running services.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from jobs.connect import connect
from jobs.errors import LongCatError
from jobs.settings import InvalidSettings
from service.keys.api_keys import ApiKey, ApiKeys
from service.keys.authentication import ANONYMOUS
from service.settings import Settings
from service.webhooks.signing import Signer

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code: 1 if it fails, 2 for invalid settings."""
    options = _parser().parse_args(arguments)
    try:
        settings = Settings.read()
        with connect(settings.redis_address, settings.redis_patience_s) as redis:
            signer = Signer(redis, settings.webhook_secret, settings.webhook_secret_previous)
            return _run(options, ApiKeys(redis), signer)
    except InvalidSettings as error:
        print(error, file=sys.stderr)
        return 2
    except LongCatError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, keys: ApiKeys, signer: Signer) -> int:
    match options.command:
        case "create":
            expires_at = options.expires_at or (options.expires_in and datetime.now(UTC) + options.expires_in)
            print(
                keys.create(
                    options.owner,
                    expires_at=expires_at,
                    high_priority=options.allow_high,
                    admin=options.admin,
                )
            )
            print("It is not shown again.", file=sys.stderr)
        case "list":
            for key in keys.all():
                print(_describe(key))
        case "revoke" if not keys.revoke(options.id):
            print(f"error: there is no key {options.id}", file=sys.stderr)
            return 1
        case "webhook-secret":
            print(signer.secret_of(options.owner))
        case "rotate-webhook-secret":
            print(signer.rotate(options.owner, options.overlap.total_seconds()))
    return 0


def _describe(key: ApiKey) -> str:
    state = f"revoked {key.revoked_at}" if key.revoked_at else "valid" if key.is_valid else "expired"
    expiry = f"expires {key.expires_at}" if key.expires_at else "never expires"
    used = f"last used {key.last_used_at}" if key.last_used_at else "never used"
    rights = [*(["high priority"] if key.high_priority else []), *(["admin"] if key.admin else [])]
    return "  ".join([key.id, key.owner, f"created {key.created_at}", expiry, used, state, *rights])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.keys", description="Manage API keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="create a key and print it")
    create.add_argument("owner", help="the owner of the jobs that are requested with the key")
    expiry = create.add_mutually_exclusive_group()
    expiry.add_argument("--expires-in", type=_duration, metavar="90d", help="s, m, h or d; default: never")
    expiry.add_argument("--expires-at", type=_time, metavar="TIME", help="RFC 3339, as 2030-01-31T12:00:00Z")
    create.add_argument("--allow-high", action="store_true", help="allow jobs of high priority")
    create.add_argument("--admin", action="store_true", help="show and change the jobs of all owners")
    commands.add_parser("list", help="list all keys, without their secrets")
    revoke = commands.add_parser("revoke", help="revoke a key")
    revoke.add_argument("id", help="the id that `list` shows; also the middle part of the key")
    secret = commands.add_parser(
        "webhook-secret", help="print the secret with which an owner verifies webhooks"
    )
    rotate = commands.add_parser(
        "rotate-webhook-secret",
        help="print a new secret; webhooks are signed with both secrets until the overlap ends",
    )
    for command in (secret, rotate):
        command.add_argument(
            "owner", nargs="?", default=ANONYMOUS, help="default: jobs requested without a key"
        )
    rotate.add_argument(
        "--overlap",
        type=_duration,
        default=timedelta(days=1),
        metavar="24h",
        help="how long the previous secret also signs; 0s: not at all",
    )
    return parser


def _duration(text: str) -> timedelta:
    shape = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if shape is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number followed by s, m, h or d")
    return timedelta(**{_UNITS[shape[2]]: int(shape[1])})


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in RFC 3339") from error
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone")
    return time


if __name__ == "__main__":
    sys.exit(main())
