"""Test that luacheck runs over the assembled scripts and reports planted mistakes."""

from __future__ import annotations

import shutil

import pytest

from tests.lint_lua import assembled_scripts, lint

pytestmark = pytest.mark.skipif(shutil.which("luacheck") is None, reason="luacheck is not installed")


def test_scripts_have_no_findings():
    assert lint(assembled_scripts()) == []


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
    findings = lint({"a": shared + "return f()", "b": shared + "return 3"})
    assert ["'g'" in text for text in findings] == [True]
