"""Test that mutants of Lua scripts differ from the script in one place."""

from __future__ import annotations

from tests.mutation.lua import lua_mutants

SCRIPT = """-- a == b stays
local n = tonumber(given.n) + 1
redis.call('ZADD', KEY, n, given.id)
if n <= 3 and not found then return end
"""


def test_operators_are_replaced_and_statements_left_out():
    assert [(mutant.line, mutant.change) for mutant in lua_mutants(SCRIPT)] == [
        (2, "local n = tonumber(given.n) + 1  →  local n = tonumber(given.n) - 1"),
        (2, "local n = tonumber(given.n) + 1  →  local n = tonumber(given.n) + 2"),
        (3, "without redis.call('ZADD', KEY, n, given.id)"),
        (4, "without if n <= 3 and not found then return end"),
        (4, "if n <= 3 and not found then return end  →  if n < 3 and not found then return end"),
        (4, "if n <= 3 and not found then return end  →  if n <= 3 or not found then return end"),
        (4, "if n <= 3 and not found then return end  →  if n <= 3 and found then return end"),
    ]


def test_every_mutant_changes_one_line():
    for mutant in lua_mutants(SCRIPT):
        pairs = zip(SCRIPT.splitlines(), mutant.text.splitlines(), strict=True)
        assert [number for number, (old, new) in enumerate(pairs, 1) if old != new] == [mutant.line]
