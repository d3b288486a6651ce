"""Evaluate the part of PromQL that the chart's queries use, on the samples of one time.

Once aggregations, `or` and `and` are renamed, such a query is an expression of Python, which evaluates it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import add, mul, sub, truediv

Labels = frozenset[tuple[str, str]]
Samples = Mapping[str, Mapping[Labels, float]]
"""The value of each series, by metric and labels."""


class Vector(dict[Labels, float]):
    """An instant vector."""

    def _with(self, other: Vector | float, operation: Callable[[float, float], float]) -> Vector:
        """Combine the series with a number, or with those of another vector that have the same labels."""
        if isinstance(other, Vector):
            return Vector({key: operation(self[key], other[key]) for key in self.keys() & other.keys()})
        return Vector({key: operation(value, other) for key, value in self.items()})

    def __add__(self, other: Vector | float) -> Vector:
        return self._with(other, add)

    def __sub__(self, other: Vector | float) -> Vector:
        return self._with(other, sub)

    def __mul__(self, other: Vector | float) -> Vector:
        return self._with(other, mul)

    def __truediv__(self, other: Vector | float) -> Vector:
        return self._with(other, truediv)

    def __or__(self, other: Vector) -> Vector:  # type: ignore[override]
        return Vector({**other, **self})

    def __and__(self, other: Vector) -> Vector:
        return Vector({key: self[key] for key in self.keys() & other.keys()})

    def __eq__(self, other: object) -> Vector:  # type: ignore[override]
        return Vector({key: value for key, value in self.items() if value == other})

    __hash__ = None


def evaluate(query: str, samples: Samples) -> float | None:
    """Return the only value of a query, None if it has none. Raises ValueError if it has more."""
    expression = re.sub(r"max by \(pool\)", "max_by_pool", " ".join(query.split()))
    expression = expression.replace(" or ", " | ").replace(" and ", " & ")
    expression = re.sub(
        r'(longcat_\w+)(?:\{((?:"(?:[^"\\]|\\.)*"|[^"}])*)\})?',
        lambda found: f"series({found[1]!r}, {_patterns(found[2] or '')!r})",
        expression,
    )

    def series(name: str, patterns: Mapping[str, str]) -> Vector:
        return Vector(
            {
                key: at
                for key, at in samples.get(name, {}).items()
                if all(re.fullmatch(each, dict(key).get(label, "")) for label, each in patterns.items())
            }
        )

    functions = {
        "series": series,
        "sum": lambda vector: Vector({frozenset(): sum(vector.values())} if vector else {}),
        "max": lambda vector: Vector({frozenset(): max(vector.values())} if vector else {}),
        "max_by_pool": max_by_pool,
        "clamp_max": lambda vector, most: Vector({key: min(at, most) for key, at in vector.items()}),
        "vector": lambda value: Vector({frozenset(): value}),
    }
    result = eval(expression, {"__builtins__": {}}, functions)
    if len(result) > 1:
        raise ValueError(f"{query} has {len(result)} values")
    return float(sum(result.values())) if result else None


def _patterns(matchers: str) -> dict[str, str]:
    """Return the regular expression that the value of each label must match."""
    found = re.findall(r'(\w+)(=~?)"((?:[^"\\]|\\.)*)"', matchers)
    return {
        label: text.replace("\\\\", "\\") if sign == "=~" else re.escape(text) for label, sign, text in found
    }


def max_by_pool(vector: Vector) -> Vector:
    """Return the largest value of each pool."""
    largest = Vector()
    for key, at in vector.items():
        pool = frozenset(label for label in key if label[0] == "pool")
        largest[pool] = max(at, largest.get(pool, at))
    return largest
