"""A stored shape changes only together with its version."""

from __future__ import annotations

import json

from tests.golden.schemas import PINNED, as_json, stored_shapes, without_version_step

WHAT_TO_DO = """\
the stored shape of {names} changed. Other releases read it during an update and after a rollback
(docs/upgrading.md): give new fields defaults, keep the meaning of old ones, and raise its version where it is
declared. Then run `python -m tests.golden.schemas` and commit tests/golden/schemas.json."""


def test_stored_shapes_are_as_pinned():
    pinned, found = json.loads(PINNED.read_text()), as_json(stored_shapes())
    changed = [name for name in sorted(pinned.keys() | found.keys()) if pinned.get(name) != found.get(name)]
    assert not changed, WHAT_TO_DO.format(names=", ".join(changed))


def test_shape_that_changed_without_a_version_step_is_not_pinned():
    pinned = {"order": {"version": 2, "shape": ["seed"]}, "event": {"version": 1, "shape": []}}
    longer = {**pinned, "order": {"version": 2, "shape": ["seed", "model"]}}
    assert without_version_step(pinned, longer) == ["order"]
    stepped = {**pinned, "order": {"version": 3, "shape": ["seed", "model"]}}
    assert without_version_step(pinned, stepped) == []
