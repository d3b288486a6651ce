"""`python -m service.keys create OWNER | list | revoke ID | webhook-secret [OWNER]`: what owners need.

A key is good, or no longer good, at once for all running services.
"""

from __future__ import annotations

import argparse
import sys

from pydantic import ValidationError

from jobs.connect import connect
from jobs.errors import LongCatError
from service.auth import EVERYBODY
from service.keys import ApiKeys
from service.settings import Settings, problems_of
from service.webhooks.signing import Signer


def main() -> int:
    """Do what the command line says; 1 if it cannot be done, 2 if it makes no sense."""
    options = _options()
    try:
        settings = Settings()
        with connect(settings.redis_url, settings.redis_patience_s) as redis:
            if options.command == "webhook-secret":
                print(Signer(redis, settings.webhook_secret).secret_of(options.owner))
                return 0
            return _run(options, ApiKeys(redis))
    except ValidationError as error:
        print("\n".join(problems_of(error)), file=sys.stderr)
        return 2
    except LongCatError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, keys: ApiKeys) -> int:
    match options.command:
        case "create":
            print(keys.create(options.owner))
            print("It is not shown again.", file=sys.stderr)
        case "list":
            for key in keys.all():
                state = f"revoked {key.revoked_at}" if key.revoked_at else "good"
                print(f"{key.id}  {key.owner}  made {key.created_at}  {state}")
        case "revoke" if not keys.revoke(options.id):
            print(f"error: there is no key {options.id}", file=sys.stderr)
            return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.keys", description="Look after API keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it")
    create.add_argument("owner", help="in whose name it asks")
    commands.add_parser("list", help="print all keys, without what is secret")
    revoke = commands.add_parser("revoke", help="end a key")
    revoke.add_argument("id", help="as the list shows it; also the middle of the key itself")
    secret = commands.add_parser("webhook-secret", help="print what an owner verifies webhooks with")
    secret.add_argument("owner", nargs="?", default=EVERYBODY, help="absent: where there are no keys")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
