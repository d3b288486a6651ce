"""The table of error codes is complete and correct."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.errors import LongCatError
from service.errors import STATUS, status_of
from service.openapi.error_table import classes, document

DOCUMENT = Path(__file__).parents[3] / "docs" / "errors.md"
ROW = re.compile(r"\| `(\w+)` \| (\d*) \| (|yes) \| (|yes) \| (.+) \|")


def rows():
    found = [ROW.fullmatch(line) for line in document().splitlines() if line.startswith("| `")]
    assert all(found)
    return {row[1]: row for row in found if row}


def test_committed_page_is_current():
    assert DOCUMENT.read_text() == document(), "run: make generate"


def test_codes_are_unique():
    codes = [kind.code for kind in classes()]
    assert sorted(codes) == sorted(set(codes))
    assert LongCatError.code not in codes


def test_every_code_is_in_the_table():
    assert {kind.code for kind in classes()} | {
        "not_found",
        "method_not_allowed",
        "internal",
    } == rows().keys()


def test_every_code_is_in_the_runbook():
    page = (DOCUMENT.parent / "operations.md").read_text()
    runbook = page.split("\n## Runbook\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in runbook.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) == rows().keys()


def test_table_has_the_answered_statuses():
    for kind in classes():
        shown = rows()[kind.code][2]
        if any(ancestor in STATUS for ancestor in kind.__mro__):
            assert shown == str(status_of(kind))
        else:
            assert shown == ""


def test_table_says_which_errors_are_retryable():
    for kind in classes():
        assert (rows()[kind.code][4] == "yes") == kind.retryable


def test_every_code_is_explained():
    for code, row in rows().items():
        assert row[5].endswith("."), code
