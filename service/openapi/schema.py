"""The documentation of routes that read their bodies themselves: two kinds, one schema, examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from service.inputs.body import GENERATE, FormFields
from service.jobs.bodies import GenerateRequest
from service.openai.bodies import CREATE_FORM, EXTEND_FORM, ExtensionRequest, VideoRequest

_FILE = {"type": "string", "format": "binary", "description": "The file itself."}
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True)
class _Body:
    """A body as JSON (`model`) and as a form with the same fields, of which some may be files."""

    model: type[BaseModel]
    form: FormFields

    @property
    def form_name(self) -> str:
        return self.model.__name__.replace("Request", "Form")

    def described(self, examples: dict[str, Any]) -> dict[str, Any]:
        """The `requestBody` of a route."""
        as_json = {"schema": {"$ref": _REF.format(model=self.model.__name__)}} | examples
        as_form = {"schema": {"$ref": _REF.format(model=self.form_name)}}
        return {"required": True, "content": {"application/json": as_json, "multipart/form-data": as_form}}

    def schemas(self) -> dict[str, Any]:
        schema = self.model.model_json_schema(ref_template=_REF)
        parts = schema.pop("$defs", {})
        fields = _form_fields(schema["properties"], self.form)
        return {
            **parts,
            self.model.__name__: schema,
            self.form_name: {**schema, "title": self.form_name, "properties": fields},
        }


_BODIES = {
    "/generate": _Body(GenerateRequest, GENERATE),
    "/v1/videos": _Body(VideoRequest, CREATE_FORM),
    "/v1/videos/extensions": _Body(ExtensionRequest, EXTEND_FORM),
}


class DocumentedAPI(FastAPI):
    """An app that also documents what FastAPI cannot see."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _drop_foreign_errors(document)
            _say_that_keys_are_optional(document)
            for path, body in _BODIES.items():
                shown = {"examples": examples()} if path == "/generate" else {}
                document["paths"][path]["post"]["requestBody"] = body.described(shown)
                document["components"]["schemas"] |= body.schemas()
        assert self.openapi_schema
        return self.openapi_schema


def examples() -> dict[str, Any]:
    """Requests that work on every checkpoint, at least one for each task."""
    read: dict[str, Any] = json.loads(Path(__file__).with_name("examples.json").read_text())
    return read


def _drop_foreign_errors(document: dict[str, Any]) -> None:
    """FastAPI documents a 422 of its own for every route that has a parameter, which is never answered."""
    for operations in document["paths"].values():
        for operation in operations.values():
            answers = operation["responses"]
            if "HTTPValidationError" in json.dumps(answers.get("422")):
                del answers["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _say_that_keys_are_optional(document: dict[str, Any]) -> None:
    """A service for which no key was ever made asks for none."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "security" in operation:
                operation["security"] = [*operation["security"], {}]


def _form_fields(fields: dict[str, Any], form: FormFields) -> dict[str, Any]:
    """The same fields, of which some may be files; a form has no null, and parts of objects as fields."""
    shown = {}
    for name, field in fields.items():
        kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
        files = [_FILE] if name in form.files else []
        shown[name] = {**field, "anyOf": [*files, *kinds]} if kinds else field
        if shown[name].get("default", ...) is None:
            shown[name] = {key: value for key, value in shown[name].items() if key != "default"}
    parts = sorted(name for name in form.texts if "[" in name)
    return shown | {name: {"type": "string", "description": "The same, as a text."} for name in parts}
