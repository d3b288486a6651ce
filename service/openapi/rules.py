"""State which fields of a body need each other, as keywords of JSON Schema.

Only `if` and `dependentSchemas` are used: generators of clients ignore them, whereas they replace an object
with `anyOf` by a union of objects without fields. A field that is null is not given; forms have no nulls.
"""

from __future__ import annotations

from typing import Any

from model.spec.resolve import INPUTS

Schema = dict[str, Any]

SOURCES = ("url", "base64", "job", "job_id")
"""The fields of an input, of which one is given."""


def rules_of_generate(*, in_form: bool) -> Schema:
    """Return the rules of `POST /generate`: either `prompt` or `prompts`, and what a task needs."""
    parts = SOURCES if in_form else ()
    return {
        "if": _given("prompts"),
        "then": {"properties": {"prompt": {"type": "null"}}},
        "else": _given("prompt"),
        "dependentSchemas": {
            "task": _of_task("video", parts, {"else": _of_task("image", parts, {})}),
        },
    }


def any_given(first: str, *others: str) -> Schema:
    """Return the rule that one of these fields is given, or several."""
    return {"if": _given(first), "else": any_given(*others)} if others else _given(first)


def _of_task(field: str, parts: tuple[str, ...], otherwise: Schema) -> Schema:
    """Return the rule that a task which needs an input has it, as a whole or by one of these parts."""
    tasks = [task for task, (required, _) in INPUTS.items() if field in required]
    needed = any_given(field, *(f"{field}[{part}]" for part in parts))
    return {"if": {"properties": {"task": {"enum": tasks}}}, "then": needed, **otherwise}


def _given(field: str) -> Schema:
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}
