"""A mistake in a script says in which file it is: Redis knows only the text that it got."""

from __future__ import annotations

from linecache import getline

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from jobs.store.scripts import FOLDER, Scripts


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
    assert line.startswith("if not recorded or given.version > recorded")


def test_error_names_its_line_in_the_part_that_the_script_includes(redis: Redis):
    path, line = line_with_error(redis, "begin_upload")
    assert path == "jobs/store/scripts/parts/record.lua"
    assert line == "return 'longcat:job:' .. id"
