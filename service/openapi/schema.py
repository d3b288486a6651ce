"""Complete the OpenAPI document where FastAPI cannot: bodies that are JSON or a form, and examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from service.inputs.body import GENERATE
from service.inputs.form import FormFields
from service.jobs.bodies import GenerateRequest, RequestOptions
from service.openai.bodies import CREATE_FORM, EXTEND_FORM, ExtensionRequest, VideoRequest
from service.presets.routes import PRESET_FORM

_FILE = {"type": "string", "format": "binary", "description": "The file itself."}
_ANNOTATIONS = {"title", "description", "default", "examples"}
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True)
class _Body:
    """A body that may be JSON (`model`) or a form with the same fields, some of which may be files."""

    model: type[BaseModel]
    form: FormFields
    is_required: bool = True

    @property
    def form_name(self) -> str:
        return self.model.__name__.replace("Request", "Form")

    def request_body(self, examples: dict[str, Any]) -> dict[str, Any]:
        """Return the `requestBody` of a route."""
        as_json = {"schema": {"$ref": _REF.format(model=self.model.__name__)}} | examples
        as_form = {"schema": {"$ref": _REF.format(model=self.form_name)}}
        content = {"application/json": as_json, "multipart/form-data": as_form}
        return {"required": self.is_required, "content": content}

    def schemas(self) -> dict[str, Any]:
        schema = self.model.model_json_schema(ref_template=_REF)
        parts = schema.pop("$defs", {})
        required = set(schema.get("required", ()))
        schema["properties"] = {
            name: field if name in required else _nullable(field)
            for name, field in schema["properties"].items()
        }
        fields = _form_fields(schema["properties"], self.form)
        return {
            **parts,
            self.model.__name__: schema,
            self.form_name: {**schema, "title": self.form_name, "properties": fields},
        }


_BODIES = {
    ("post", "/generate"): _Body(GenerateRequest, GENERATE),
    ("post", "/jobs/{job_id}/retry"): _Body(GenerateRequest, GENERATE, is_required=False),
    ("put", "/presets/{name}"): _Body(RequestOptions, PRESET_FORM),
    ("post", "/v1/videos"): _Body(VideoRequest, CREATE_FORM),
    ("post", "/v1/videos/extensions"): _Body(ExtensionRequest, EXTEND_FORM),
}


class DocumentedAPI(FastAPI):
    """An app that also documents the bodies that its routes read themselves."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, created on first use."""
        if self.openapi_schema is None:
            document = super().openapi()
            _drop_unused_errors(document)
            _make_keys_optional(document)
            for (method, path), body in _BODIES.items():
                extra = {"examples": examples()} if path == "/generate" else {}
                document["paths"][path][method]["requestBody"] = body.request_body(extra)
                document["components"]["schemas"] |= body.schemas()
        assert self.openapi_schema
        return self.openapi_schema


def examples() -> dict[str, Any]:
    """Return example requests that work on every checkpoint, at least one per task."""
    read: dict[str, Any] = json.loads(Path(__file__).with_name("examples.json").read_text())
    return read


def _drop_unused_errors(document: dict[str, Any]) -> None:
    """Remove the 422 that FastAPI documents for every route with a parameter: ours has another shape."""
    for operations in document["paths"].values():
        for operation in operations.values():
            answers = operation["responses"]
            if "HTTPValidationError" in json.dumps(answers.get("422")):
                del answers["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _make_keys_optional(document: dict[str, Any]) -> None:
    """Document that a request without a key is possible: a service without any keys requires none."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "security" in operation:
                operation["security"] = [*operation["security"], {}]


def _nullable(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field that may be null, which counts as absent."""
    if "anyOf" in field:
        return field
    about = {name: value for name, value in field.items() if name in _ANNOTATIONS}
    kind = {name: value for name, value in field.items() if name not in _ANNOTATIONS}
    return {"anyOf": [kind, {"type": "null"}], **about}


def _form_fields(fields: dict[str, Any], form: FormFields) -> dict[str, Any]:
    """Return the fields as a form has them: some may be files, none is null, parts of objects are fields."""
    shown = {}
    for name, field in fields.items():
        kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
        files = [_FILE] if name in form.files else []
        shown[name] = {**field, "anyOf": [*files, *kinds]} if kinds else field
        if shown[name].get("default", ...) is None:
            shown[name] = {key: value for key, value in shown[name].items() if key != "default"}
    parts = sorted(name for name in form.texts if "[" in name)
    return shown | {name: {"type": "string", "description": "The same, as plain text."} for name in parts}
