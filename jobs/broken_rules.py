"""Say which rule a value breaks, in the words of JSON. pydantic's are those of Python."""

from __future__ import annotations

from pydantic_core import ErrorDetails

_TYPES = {
    "bool": "true or false",
    "decimal": "a number",
    "dict": "an object",
    "float": "a number",
    "int": "an integer",
    "list": "a list",
    "model": "an object",
    "string": "a string",
}
_RULES = {
    "extra_forbidden": "is not a field of this request",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "json_invalid": "must be JSON",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "missing": "is required",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
}
_KINDS_OF_TYPE_ERRORS = {"type", "parsing", "from"}  # as in `int_type`, `int_parsing` and `int_from_float`


def rule_of(problem: ErrorDetails) -> str:
    """Return the rule that a value breaks, such as "must be at least 1"."""
    kind, context = problem["type"], problem.get("ctx", {})
    of_type, _, rest = kind.partition("_")
    if of_type in _TYPES and rest.partition("_")[0] in _KINDS_OF_TYPE_ERRORS:
        return f"must be {_TYPES[of_type]}"
    rule = _RULES.get(kind)
    if rule is None:
        return problem["msg"].removeprefix("Value error, ")
    if "_length" in rule:
        if context.get("field_type") == "Value":  # pydantic does not know that this is a string
            rule = rule.replace("items", "characters")
        if 1 in (context.get("min_length"), context.get("max_length")):
            rule = rule.removesuffix("s")
    return rule.format_map({name: _shown(value) for name, value in context.items()})


def _shown(bound: object) -> object:
    """Return a number that is whole without its decimals."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound
