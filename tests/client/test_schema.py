"""The client knows every field of the API, and both clients have the same methods."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from pydantic import BaseModel

from longcat_video_client import AsyncClient, Client, models
from longcat_video_client.async_client import AsyncJobs, AsyncPresets
from longcat_video_client.calls import Filters
from longcat_video_client.client import Jobs, Presets
from longcat_video_client.options import Options
from service.app import create_app
from tests.service.conftest import settings_for

DERIVED = {"fps", "refinement"}
"""Fields that follow from others: a request that repeats a job may state them."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the OpenAPI document."""
    settings = settings_for("redis://127.0.0.1:1/0", tmp_path_factory.mktemp("service"))
    return create_app(settings).openapi()


@pytest.fixture(scope="module")
def schemas(document: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of the OpenAPI document."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    return schemas


def test_every_filter_of_a_list_is_known(document):
    parameters = {parameter["name"] for parameter in document["paths"]["/jobs"]["get"]["parameters"]}
    assert parameters - {"limit", "after", "before"} == Filters.__annotations__.keys()


def test_every_option_of_a_request_is_known(schemas):
    properties = set(schemas["GenerateRequest"]["properties"])
    assert {"prompt", "prompts", *Options.__annotations__} == properties - DERIVED


def test_options_have_the_values_that_the_service_accepts(schemas):
    properties = schemas["GenerateRequest"]["properties"]
    accepted = {name: values for name, schema in properties.items() if (values := enum_of(schema))}
    assert accepted.keys() == {"task", "quality", "priority", "webhook_events"}
    for name, values in accepted.items():
        assert literals_of(Options.__annotations__[name]) == values, name


def test_options_have_the_types_that_the_service_accepts(schemas):
    properties = schemas["GenerateRequest"]["properties"]
    types = {"integer": "int", "number": "float", "boolean": "bool"}
    for name, hint in Options.__annotations__.items():
        schema = properties[name]
        kinds = {part.get("type") for part in schema.get("anyOf", [schema])} - {"null"}
        expected = {types[kind] for kind in kinds if kind in types}
        assert {
            word for word in ("int", "float", "bool") if re.search(rf"\b{word}\b", hint_text(hint))
        } == expected


@pytest.mark.parametrize(
    ("schema", "model"),
    [
        ("JobView", models.Job),
        ("RequestView", models.ResolvedRequest),
        ("Refinement", models.Refinement),
        ("InputView", models.InputFile),
        ("Batch", models.Batch),
        ("BatchView", models.BatchJobs),
        ("Progress", models.Progress),
        ("JobError", models.JobError),
        ("ResultView", models.Result),
        ("JobPage", models.JobPage),
        ("PresetsView", models.Presets),
        ("PresetView", models.Preset),
        ("FleetView", models.Capability),
        ("PoolView", models.Pool),
    ],
)
def test_every_field_of_a_reply_is_known(schemas, schema, model: type[BaseModel]):
    assert set(schemas[schema]["properties"]) - set(model.model_fields) == set()


def enum_of(schema: dict[str, Any]) -> set[str]:
    """Return the values of an enumeration, also of one that may be null or is in a list."""
    parts = [schema, *schema.get("anyOf", [])]
    parts += [part["items"] for part in parts if "items" in part]
    return {value for part in parts for value in part.get("enum", ())}


def hint_text(hint: Any) -> str:
    return str(getattr(hint, "__forward_arg__", hint))


def literals_of(hint: Any) -> set[str]:
    return set(re.findall(r"[\"']([a-z_]+)[\"']", hint_text(hint)))


@pytest.mark.parametrize(
    ("sync", "asynchronous"), [(Client, AsyncClient), (Jobs, AsyncJobs), (Presets, AsyncPresets)]
)
def test_both_clients_have_the_same_methods(sync, asynchronous):
    assert len(methods(sync)) >= 4
    assert methods(sync) == methods(asynchronous)


def methods(kind: type) -> dict[str, list[Any]]:
    """Return the parameters of each public method and what it returns, without what makes it asynchronous."""
    found = {}
    for name, method in vars(kind).items():
        if inspect.isfunction(method) and (not name.startswith("_") or name == "__init__"):
            signature = inspect.signature(method)
            parameters = [
                (parameter.name, parameter.kind, parameter.default, plain(parameter.annotation))
                for parameter in signature.parameters.values()
            ]
            found[name] = [*parameters, plain(signature.return_annotation)]
    return found


def plain(annotation: Any) -> str:
    text = re.sub(r"Async(?=Iterator|Generator|BaseTransport)|_Connection", "", str(annotation))
    return text.replace("Generator[Event, None, None]", "Generator[Event, None]")
