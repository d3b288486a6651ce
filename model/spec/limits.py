"""Read the limits of a checkpoint: what can be requested of it, and its defaults.

A worker publishes them to the service, which refuses a request that exceeds them before it is queued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, TypeAdapter

from model.spec.errors import reported_as
from model.spec.geometry import Buckets, Size

RELEASED_LIMITS = Path(__file__).with_name("limits.json")


@dataclass(frozen=True)
class Limits:
    """Limits and defaults of a checkpoint. Sides are in pixels."""

    buckets: Mapping[str, Buckets]
    refine_buckets: Buckets
    default_size: Size
    min_side: PositiveInt
    max_pixels: PositiveInt
    only_buckets: bool  # allow only the sizes in `buckets`
    default_num_frames: PositiveInt
    max_num_frames: PositiveInt
    max_num_segments: PositiveInt
    num_condition_frames: NonNegativeInt
    fps: PositiveInt
    num_inference_steps: PositiveInt
    distilled_num_inference_steps: PositiveInt
    max_num_inference_steps: PositiveInt
    guidance_scale: float
    max_guidance_scale: float
    max_prompt_characters: PositiveInt
    negative_prompt: str
    example_prompts: tuple[str, ...]  # examples for new users
    known_words: tuple[str, ...]  # all words that the text encoder knows, in lower case; none: it knows any

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Return all sizes in `buckets`, each once."""
        return tuple(dict.fromkeys(size for table in self.buckets.values() for size in table.values()))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Limits:
        """Read limits that another process published. Missing keys have LongCat-Video's values.

        Unknown keys are ignored: a later release may have written them. Raises ValueError, TypeError or
        AttributeError for a wrong value.
        """
        known = {name: value for name, value in document.items() if name in _names()}
        values = {**_released(), **known}
        values["buckets"] = {name: _buckets(table) for name, table in values["buckets"].items()}
        values["refine_buckets"] = _buckets(values["refine_buckets"])
        values["default_size"] = Size(*values["default_size"])
        values["example_prompts"] = tuple(values["example_prompts"])
        values["known_words"] = tuple(values["known_words"])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return a document that `from_json` reads, without known words: capabilities name them, too."""
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "known_words"
        }


def load_limits(checkpoint: Path) -> Limits:
    """Return the limits in the `limits.json` of a checkpoint, or LongCat-Video's if there is none.

    Raises CheckpointError if the file cannot be read, or has an unknown key or a wrong value.
    """
    path = checkpoint / "limits.json"
    with reported_as(path, "cannot be read"):
        document = json.loads(path.read_text()) if path.exists() else {}
        _check_names(document)
        return TypeAdapter(Limits).validate_json(json.dumps({**_released(), **document}), strict=True)


@cache
def _released() -> dict[str, Any]:
    """Return LongCat-Video's limits. They are read once: every request needs them."""
    values: dict[str, Any] = json.loads(RELEASED_LIMITS.read_text())
    return values


def _names() -> set[str]:
    return {field.name for field in fields(Limits)}


def _check_names(document: Mapping[str, Any]) -> None:
    if unknown := document.keys() - _names():
        raise ValueError(f"unknown keys {sorted(unknown)}; known are {sorted(_names())}")


def _buckets(table: Mapping[str, Any]) -> Buckets:
    return {ratio: Size(*size) for ratio, size in table.items()}
