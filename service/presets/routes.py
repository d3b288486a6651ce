"""Answer `/presets`: list, store and delete the presets of an owner."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import InvalidRequest
from service.backend import CurrentBackend
from service.errors import invalid
from service.http.error_handlers import error_responses
from service.inputs.body import Body, receive_body
from service.inputs.form import FormFields
from service.jobs.bodies import RequestOptions
from service.jobs.orders import check_contradictions
from service.presets.store import Presets, StoredPreset

router = APIRouter(tags=["presets"])

PRESET_FORM = FormFields.of(RequestOptions, ())
MAX_BYTES = 16 << 10
"""How large the JSON of a preset's options may be."""
MAX_NAME_CHARACTERS = 60
_NAME = re.compile(rf"(?!\.{{1,2}}$)(?!\s)[^/\x00-\x1f\x7f]{{1,{MAX_NAME_CHARACTERS}}}(?<!\s)")

PresetName = Annotated[
    str,
    Path(
        description="From 1 to 60 characters, without `/` and control characters, and without spaces at its "
        "ends; not `.` or `..`.",
        examples=["draft"],
    ),
]


class PresetView(BaseModel):
    """Options under a name."""

    model_config = ConfigDict(extra="forbid")

    name: str
    options: dict[str, Any] = Field(description="Fields of `POST /generate`. Those that are absent are open.")

    @classmethod
    def of(cls, name: str, stored: StoredPreset) -> PresetView:
        """Return the view of a stored preset, without options that this release does not have."""
        known = RequestOptions.model_fields
        return cls(name=name, options={key: value for key, value in stored.options.items() if key in known})


class PresetsView(BaseModel):
    """All presets of an owner."""

    model_config = ConfigDict(extra="forbid")

    presets: list[PresetView] = Field(description="In the order of their names.")


async def _receive_options(request: Request, backend: CurrentBackend) -> AsyncIterator[Body]:
    async with receive_body(request, PRESET_FORM, backend) as body:
        yield body


@router.get("/presets", responses=error_responses(503))
def list_presets(backend: CurrentBackend) -> PresetsView:
    """List your presets."""
    presets = Presets(backend.redis, backend.caller.owner).all()
    return PresetsView(presets=[PresetView.of(name, stored) for name, stored in presets.items()])


@router.put("/presets/{name:path}", responses=error_responses(400, 408, 409, 413, 415, 422, 503))
async def save_preset(
    name: PresetName, backend: CurrentBackend, body: Annotated[Body, Depends(_receive_options)]
) -> PresetView:
    """Store options under a name, in place of those that it had.

    The body has fields of `POST /generate`, except input files. Options that contradict each other are
    refused. What depends on the checkpoint is checked when a request uses them.
    """
    _check_name(name)
    options = _checked(body.values)

    def save() -> StoredPreset:
        backend.memory_guard.check()
        return Presets(backend.redis, backend.caller.owner).save(name, options)

    return PresetView.of(name, await run_in_threadpool(save))


@router.delete("/presets/{name:path}", status_code=204, responses=error_responses(404, 503))
def delete_preset(name: PresetName, backend: CurrentBackend) -> Response:
    """Delete a preset."""
    Presets(backend.redis, backend.caller.owner).delete(name)
    return Response(status_code=204)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"name: must have from 1 to {MAX_NAME_CHARACTERS} characters, without slashes and control "
            "characters, and without spaces at its ends",
            "name",
        )


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given. Raise InvalidRequest."""
    try:
        checked = RequestOptions.model_validate(values)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from error
    check_contradictions(checked)
    options = checked.model_dump(mode="json", exclude_unset=True)
    size = len(json.dumps(options, ensure_ascii=False).encode())
    if size > MAX_BYTES:
        raise InvalidRequest(f"the options have {size} bytes, of at most {MAX_BYTES}")
    return options
