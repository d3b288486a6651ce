"""Complete the OpenAPI document where FastAPI cannot: bodies that are JSON or a form, and examples."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from service.inputs.body import GENERATE
from service.inputs.form import FormFields
from service.jobs.bodies import GenerateRequest, RequestOptions
from service.openai.bodies import CREATE_FORM, EXTEND_FORM, ExtensionRequest, VideoRequest
from service.openapi.rules import any_given, rules_of_generate
from service.presets.routes import PRESET_FORM

_FILE = {"type": "string", "format": "binary", "description": "The file itself."}
_ANNOTATIONS = {"title", "description", "default", "examples"}
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True)
class _Body:
    """A body that may be JSON or a form with the same fields, some of which may be files.

    Attributes:
        model: checks the JSON.
        form: the fields of the form.
        json_rules, form_rules: which fields need each other.
        json_required: fields that JSON needs, and a form may have as a file or in parts instead.
        is_required: whether the request must have a body.
    """

    model: type[BaseModel]
    form: FormFields
    json_rules: dict[str, Any] = field(default_factory=dict)
    form_rules: dict[str, Any] = field(default_factory=dict)
    json_required: tuple[str, ...] = ()
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
        required = schema.pop("required", [])
        fields = {
            name: kind if name in required else _nullable(kind) for name, kind in schema["properties"].items()
        }
        needed = {name: _not_null(fields[name]) for name in self.json_required}
        as_json = _object(fields | needed, [*required, *needed]) | self.json_rules
        as_form = _object(_form_fields(fields, self.form), required) | self.form_rules
        return {
            **parts,
            self.model.__name__: schema | as_json,
            self.form_name: schema | {"title": self.form_name} | as_form,
        }


def _drop_defaults(schema: dict[str, Any]) -> None:
    for value in schema["properties"].values():
        value.pop("default", None)


class RetryRequest(GenerateRequest):
    """Changes of a request. Fields that are absent stay as they are; null gives a field its default."""

    model_config = ConfigDict(json_schema_extra=_drop_defaults)  # a generated client would send them


_BODIES = {
    ("post", "/generate"): _Body(
        GenerateRequest, GENERATE, rules_of_generate(in_form=False), rules_of_generate(in_form=True)
    ),
    ("post", "/jobs/{job_id}/retry"): _Body(RetryRequest, GENERATE, is_required=False),
    ("put", "/presets/{name}"): _Body(RequestOptions, PRESET_FORM),
    ("post", "/v1/videos"): _Body(VideoRequest, CREATE_FORM),
    ("post", "/v1/videos/extensions"): _Body(
        ExtensionRequest, EXTEND_FORM, json_required=("video",), form_rules=any_given("video", "video[id]")
    ),
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


def _object(fields: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"properties": fields} | ({"required": required} if required else {})


def _nullable(value: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field that may be null, which counts as absent."""
    if "anyOf" in value:
        return value
    about = {name: text for name, text in value.items() if name in _ANNOTATIONS}
    kind = {name: rule for name, rule in value.items() if name not in _ANNOTATIONS}
    return {"anyOf": [kind, {"type": "null"}], **about}


def _not_null(value: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field that must not be null, given that of one which may be."""
    about = {name: text for name, text in value.items() if name in _ANNOTATIONS - {"default"}}
    (kind,) = _kinds(value)
    return {**kind, **about}


def _kinds(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a field that may be null can be besides."""
    return [kind for kind in value.get("anyOf", ()) if kind.get("type") != "null"]


def _form_fields(fields: dict[str, Any], form: FormFields) -> dict[str, Any]:
    """Return the fields as a form has them: some may be files, none is null, parts of objects are fields."""
    shown = {}
    for name, value in fields.items():
        files = [_FILE] if name in form.files else []
        shown[name] = {**value, "anyOf": [*files, *kinds]} if (kinds := _kinds(value)) else value
        if shown[name].get("default", ...) is None:
            shown[name] = {key: rule for key, rule in shown[name].items() if key != "default"}
    parts = sorted(name for name in form.texts if "[" in name)
    return shown | {name: {"type": "string", "description": "The same, as plain text."} for name in parts}
