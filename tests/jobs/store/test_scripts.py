"""Scripts have the names that Python has, and a mistake in one says in which file it is."""

from __future__ import annotations

import json
from linecache import getline
from typing import Any, get_args

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from jobs.order import PRIORITIES
from jobs.record import ENDED, WEBHOOK_EVENTS, Status
from jobs.store.scripts import FOLDER, Scripts, source


def line_with_error(redis: Redis, script: str, **given: object) -> tuple[str, str]:
    """Return the file in which a script fails, and the line that fails."""
    with pytest.raises(ResponseError) as caught:
        Scripts(redis).run(script, **given)
    (place,) = caught.value.__notes__
    path, _, number = place.rpartition(":")
    return path, getline(str(FOLDER.parents[2] / path), int(number)).strip()


def test_error_names_its_line_in_the_script(redis: Redis):
    path, line = line_with_error(redis, "record_keys_version")
    assert path == "jobs/store/scripts/record_keys_version.lua"
    assert line.startswith("if given.version > recorded")


def test_error_names_its_line_in_the_part_that_the_script_includes(redis: Redis):
    path, line = line_with_error(redis, "begin_upload")
    assert path == "jobs/store/scripts/parts/record.lua"
    assert line == "return 'longcat:job:' .. id"


def value_in(part: str, name: str, redis: Redis) -> Any:
    """Return the value of a local variable of a part."""
    return json.loads(redis.eval(f"{source(f'parts/{part}')}\nreturn cjson.encode({name})", 0, "{}"))


def test_priorities_are_those_of_orders(redis: Redis):
    assert value_in("record", "PRIORITIES", redis) == list(PRIORITIES)


def test_statuses_are_those_of_records(redis: Redis):
    assert value_in("record", "STATUSES", redis) == list(get_args(Status))
    assert value_in("record", "ENDED", redis).keys() == ENDED


def test_webhooks_are_sent_for_all_events(redis: Redis):
    assert sorted(value_in("outbox", "EVENTS", redis).values()) == sorted(WEBHOOK_EVENTS)
