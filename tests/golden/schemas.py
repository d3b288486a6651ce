"""Describe the shape of everything that processes store or send: `python -m tests.golden.schemas` pins it.

A test compares the code with `schemas.json`. Whoever changes a shape raises its version and pins it again;
docs/upgrading.md says what else other releases need.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from jobs import order
from jobs.capability import Capability
from jobs.order import Order
from jobs.record import Job, JobEvent
from jobs.registration import GroupStatus
from jobs.store import submission
from jobs.store.keys_version import KEYS_VERSION
from jobs.store.outbox import Attempt
from jobs.store.scripts import FOLDER as SCRIPTS
from model.pipeline import state
from model.pipeline.state import State
from model.spec.limits import Limits
from service.keys.api_keys import ApiKey
from service.keys.sessions import Session
from service.presets.store import StoredPreset
from service.webhooks.signing import Rotation
from worker import messages
from worker.messages import Checkpoint, Message
from worker.supervisor import spool
from worker.supervisor.spool import PendingUpload

_WITH_DEFAULT_VERSION = (Capability, GroupStatus, ApiKey, Session, Rotation, StoredPreset)
PINNED = Path(__file__).with_name("schemas.json")


@dataclass(frozen=True)
class Stored:
    """A shape and its version."""

    version: int
    shape: Any


def stored_shapes() -> dict[str, Stored]:
    """Return every shape by name."""
    default = {kind: _default_version(kind) for kind in _WITH_DEFAULT_VERSION}
    return {
        "record": Stored(submission.SCHEMA_VERSION, [_schema(Job, without_orders=True), _keys("record")]),
        "event": Stored(submission.SCHEMA_VERSION, _schema(JobEvent)),
        "order": Stored(order.SCHEMA_VERSION, _schema(Order)),
        "checkpoint": Stored(messages.CHECKPOINT_VERSION, _schema(Checkpoint)),
        "state file": Stored(state.FILE_VERSION, [entry.name for entry in fields(State)]),
        "pending upload": Stored(spool.PENDING_UPLOAD_VERSION, _schema(PendingUpload)),
        "messages": Stored(messages.PROTOCOL_VERSION, _schema(Message, without_orders=True)),
        "capability": Stored(
            default[Capability], [_schema(Capability), list(Limits.from_json({}).to_json())]
        ),
        "group status": Stored(default[GroupStatus], _schema(GroupStatus)),
        "webhook attempt": Stored(1, _schema(Attempt)),
        "API key": Stored(default[ApiKey], _schema(ApiKey)),
        "session": Stored(default[Session], _schema(Session)),
        "preset": Stored(default[StoredPreset], _schema(StoredPreset)),
        "webhook secret rotation": Stored(default[Rotation], _schema(Rotation)),
        "Redis keys": Stored(KEYS_VERSION, _keys("key")),
    }


def pin() -> list[str]:
    """Write `schemas.json`, or return the names of shapes that changed without a new version."""
    pinned = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    found = as_json(stored_shapes())
    if unversioned := without_version_step(pinned, found):
        return unversioned
    PINNED.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return []


def as_json(shapes: dict[str, Stored]) -> dict[str, Any]:
    """Return shapes as `schemas.json` has them."""
    document = {name: {"version": each.version, "shape": each.shape} for name, each in shapes.items()}
    normal: dict[str, Any] = json.loads(json.dumps(document))
    return normal


def without_version_step(pinned: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return the names of shapes that are not as pinned although their version is."""
    return [
        name
        for name, each in pinned.items()
        if name in found and found[name] != each and found[name]["version"] <= each["version"]
    ]


def _schema(kind: Any, *, without_orders: bool = False) -> Any:
    """Return the JSON schema of a model without texts for people. Orders have a version of their own."""
    schema = _without_texts(TypeAdapter(kind).json_schema())
    if without_orders:
        for name in ("Order", "Plan", "Refinement", "InputFile"):
            del schema["$defs"][name]
    return schema


def _without_texts(schema: Any) -> Any:
    if isinstance(schema, dict):
        texts = {"description", "title", "examples"}
        kept = {k: v for k, v in schema.items() if k not in texts or isinstance(v, dict)}
        return {name: _without_texts(value) for name, value in kept.items()}
    return [_without_texts(each) for each in schema] if isinstance(schema, list) else schema


def _default_version(kind: Any) -> int:
    return int(inspect.signature(kind).parameters["schema_version"].default)


def _keys(which: str) -> list[str]:
    """Return the names in a table of `scripts/README.md`: of the keys, or of the fields of a record."""
    keys, record = (SCRIPTS / "README.md").read_text().split("## The record of a job")
    lines = (keys if which == "key" else record).splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| `")]
    return sorted(name for cell in cells for name in re.findall(r"`([^`]+)`", cell))


def main() -> int:
    """Pin all shapes."""
    if unversioned := pin():
        sys.stderr.write(f"raise the version first of: {', '.join(unversioned)}\n")
    return bool(unversioned)


if __name__ == "__main__":
    sys.exit(main())
