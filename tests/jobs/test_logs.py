"""Log lines are text or JSON, and carry the names of the request, job and trace."""

from __future__ import annotations

import json
import logging
import threading
from contextvars import copy_context

import pytest
from redis.exceptions import RedisError

from jobs.errors import JobNotReady, Unavailable
from jobs.logs import OutageFilter, about, current_names, names_of, set_up_log
from jobs.redis_client import Outage
from tests.jobs.examples import ExampleStore

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"
logger = logging.getLogger("longcat.test")


@pytest.fixture(autouse=True)
def _log_as_before():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_json_line_has_all_fields(capsys):
    set_up_log("json")
    with about({"request_id": "r1"}), about({"job_id": "j1", "traceparent": TRACEPARENT}):
        logger.info("queued %s «ü»", 5)
    line = json.loads(last_line(capsys))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "longcat.test",
        "message": "queued 5 «ü»",
        "request_id": "r1",
        "job_id": "j1",
        "trace_id": "a" * 32,
    }


def test_json_line_contains_the_exception(capsys):
    set_up_log("json")
    try:
        int("no number")
    except ValueError:
        logger.exception("it failed")
    assert "\nValueError: invalid literal" in json.loads(last_line(capsys))["exception"]


def test_text_line_ends_with_the_names(capsys):
    set_up_log("text")
    with about({"job_id": "j1"}):
        logger.warning("slow")
    assert last_line(capsys).endswith("WARNING longcat.test: slow [job_id=j1]")
    logger.warning("slow")
    assert last_line(capsys).endswith("WARNING longcat.test: slow")


def test_text_line_is_followed_by_the_exception(capsys):
    set_up_log("text")
    try:
        int("no number")
    except ValueError:
        with about({"job_id": "j1"}):
            logger.exception("it failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("ERROR longcat.test: it failed [job_id=j1]")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1].startswith("ValueError: invalid literal")


def test_names_follow_a_copy_of_the_context_only():
    seen: list[object] = []
    with about({"job_id": "j1"}):
        context = copy_context()
        thread = threading.Thread(target=lambda: seen.append(dict(current_names())))
        thread.start()
        thread.join()
    context.run(lambda: seen.append(dict(current_names())))
    assert seen == [{}, {"job_id": "j1"}]
    assert current_names() == {}


def test_job_carries_the_names_of_its_request(store: ExampleStore):
    claim = store.start(trace={"request_id": "r1", "traceparent": TRACEPARENT})
    assert names_of(claim.job) == {"job_id": claim.job.id, "request_id": "r1", "traceparent": TRACEPARENT}
    assert names_of(store.submit()).keys() == {"job_id"}


class TestOutageFilter:
    @pytest.fixture
    def clock(self):
        """Return a list whose last item is the time."""
        return [0.0]

    @pytest.fixture
    def passed(self, clock):
        """Return a call that logs a line and returns what passes of it."""
        outages = OutageFilter(30.0, clock=lambda: clock[-1])

        def log(text, *arguments):
            record = logging.LogRecord("worker", logging.WARNING, "", 1, text, arguments, None)
            return record.getMessage() if outages.filter(record) else None

        return log

    @pytest.mark.parametrize("error", [Unavailable("away"), RedisError("away")])
    def test_repeated_line_passes_once_in_each_interval_with_the_number_left_out(self, passed, clock, error):
        assert passed("trying again in %d s: %s", 1, error) == "trying again in 1 s: away"
        assert passed("trying again in %d s: %s", 2, error) is None
        clock.append(29.9)
        assert passed("trying again in %d s: %s", 3, error) is None
        clock.append(30.0)
        line = passed("trying again in %d s: %s", 4, error)
        assert line == "trying again in 4 s: away (2 more since the last such line)"
        clock.append(60.0)
        assert passed("trying again in %d s: %s", 5, error) == "trying again in 5 s: away"

    def test_lines_with_other_texts_pass(self, passed):
        assert passed("waiting: %s", Unavailable("away")) == "waiting: away"
        assert passed("trying again: %s", Unavailable("away")) == "trying again: away"

    def test_lines_about_something_else_pass(self, passed):
        for _ in range(2):
            assert passed("job %s: %s", "j1", JobNotReady("it runs")) == "job j1: it runs"
            assert passed("slow") == "slow"


def test_next_outage_is_logged_at_once(capsys):
    set_up_log("text")
    outage = Outage()
    for _ in range(2):
        for _ in range(2):
            outage.end_command(answered=False, was_probe=False)
            logger.warning("waiting for Redis: %s", Unavailable("away"))
        outage.end_command(answered=True, was_probe=False)
    lines = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["waiting for Redis: away", "Redis answers again"] * 2


def test_outage_is_not_repeated_in_the_log(capsys):
    set_up_log("text")
    for _ in range(3):
        logger.warning("waiting for Redis: %s", Unavailable("away"))
    assert capsys.readouterr().err.count("waiting for Redis") == 1
