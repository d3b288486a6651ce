"""The legend of tensor axes in `model` is complete."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import model
from tests.architecture.source import modules

DTYPES = {"Bool", "Float", "Int", "Int8", "Shaped", "UInt8"}
PREFIXES = re.findall(r"`([a-z]+_)`", model.__doc__ or "")
LEGEND = re.findall(r"^ +([a-z_]+)  +\S", model.__doc__ or "", re.MULTILINE)


def axes(tree: ast.Module) -> Iterator[str]:
    """Yield the names of axes in all shape annotations."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(
                value=ast.Name(id=dtype), slice=ast.Tuple(elts=[_, ast.Constant(value=shape)])
            ) if dtype in DTYPES:
                names = (word.removeprefix("*") for word in str(shape).split())
                yield from (name for name in names if name not in {"_", "..."} and not name.isdigit())


USED = {name for module in modules("model") for name in axes(module.tree)}


def base(name: str) -> str:
    if name in LEGEND:
        return name
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def test_every_axis_is_in_the_legend():
    assert {name for name in USED if base(name) not in LEGEND} == set()


def test_every_axis_of_the_legend_is_used_and_listed_once():
    assert sorted(LEGEND) == sorted({base(name) for name in USED})


def test_every_prefix_is_used():
    assert {prefix for prefix in PREFIXES if not any(name.startswith(prefix) for name in USED)} == set()
