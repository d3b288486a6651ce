"""Test that luacheck runs over the assembled scripts and reports planted mistakes."""

from __future__ import annotations

import shutil
from linecache import getline

import pytest

from jobs.store.scripts import FOLDER, source
from tests import lint_lua
from tests.lint_lua import findings, lint

pytestmark = pytest.mark.skipif(shutil.which("luacheck") is None, reason="luacheck is not installed")


def test_scripts_have_no_findings():
    assert findings() == []


def test_finding_is_reported_with_the_file_that_has_it(monkeypatch):
    planted = source("claim").replace("local STRICT_MS", "STRICT_MS")
    monkeypatch.setattr(lint_lua, "assembled_scripts", lambda: {"claim": planted})
    (found,) = [each for each in findings() if "setting non-standard global variable 'STRICT_MS'" in each]
    path, number, _ = found.split(":", 2)
    assert path == "jobs/store/scripts/parts/queue_order.lua"
    assert "STRICT_MS" in getline(str(FOLDER.parents[2] / path), int(number))


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("counter = 1", "setting non-standard global variable 'counter'"),
        ("return redis.call('GET', no_such_key)", "accessing undefined variable 'no_such_key'"),
        ("local rest = 1", "unused variable 'rest'"),
        ("if then", "expected"),
    ],
)
def test_planted_mistake_is_reported(line, finding):
    assert any(finding in text for text in lint({"planted": line}))


def test_shared_definition_has_to_be_used_by_one_script():
    shared = "local function f() return 1 end\nlocal function g() return 2 end\n"
    found = lint({"a": shared + "return f()", "b": shared + "return 3"})
    assert ["'g'" in text for text in found] == [True]
