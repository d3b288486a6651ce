"""Log lines are text or JSON, and carry the names of the request, job and trace."""

from __future__ import annotations

import json
import logging
import threading
from contextvars import copy_context

import pytest

from jobs.logs import about, current_names, names_of, set_up_log
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
