"""Generate the command-line arguments of the options that `model.spec.params` declares."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args, get_origin

from model.spec.params import GenerationParams, value_type

SPELLINGS = {"num_inference_steps": "steps"}  # options whose argument is not spelled like the option
METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an argument for each option: `--name VALUE`, or a switch for a boolean.

    The switch of an option that is on by default is `--no-name`. Arguments that are not given are None.
    """
    add = parser.add_argument_group("video").add_argument
    for name, field in GenerationParams.model_fields.items():
        spelling = SPELLINGS.get(name, name).replace("_", "-")
        description = (field.description or "").replace("%", "%%")
        kind = value_type(field.annotation)
        if kind is bool:
            flag, off = ("--no-", "Turn off: ") if field.default else ("--", "")
            add(
                flag + spelling,
                dest=name,
                action="store_const",
                const=not field.default,
                help=off + description,
            )
        elif get_origin(kind) is Literal:
            add(f"--{spelling}", dest=name, choices=get_args(kind), help=description)
        else:
            assert isinstance(kind, type)
            add(f"--{spelling}", dest=name, type=kind, metavar=METAVARS[kind], help=description)


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, by name."""
    given = {name: getattr(arguments, name) for name in GenerationParams.model_fields}
    return {name: value for name, value in given.items() if value is not None}
