"""Evaluate the part of PromQL that the chart's queries use, on the samples of one time.

Once aggregations and `or` are renamed, such a query is an expression of Python, which evaluates it.
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


def evaluate(query: str, samples: Samples) -> float:
    """Return the only value of a query; 0 if it has none, as KEDA does. Raises ValueError if it has more."""
    expression = re.sub(r"max by \(pool\)", "max_by_pool", " ".join(query.split())).replace(" or ", " | ")
    expression = re.sub(
        r'(longcat_\w+)(?:\{pool=~"((?:[^"\\]|\\.)*)"\})?',
        lambda found: f"series({found[1]!r}, {found[2]!r})",
        expression,
    )

    def series(name: str, pool: str | None) -> Vector:
        pattern = ".*" if pool is None else pool.replace("\\\\", "\\")
        found = samples.get(name, {})
        return Vector(
            {key: at for key, at in found.items() if re.fullmatch(pattern, dict(key).get("pool", ""))}
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
    return float(sum(result.values()))


def max_by_pool(vector: Vector) -> Vector:
    """Return the largest value of each pool."""
    largest = Vector()
    for key, at in vector.items():
        pool = frozenset(label for label in key if label[0] == "pool")
        largest[pool] = max(at, largest.get(pool, at))
    return largest
