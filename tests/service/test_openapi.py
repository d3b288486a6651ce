"""The documentation is true: its examples work, its answers are those that are given."""

from __future__ import annotations

import jsonschema  # type: ignore[import-untyped]
import pytest
from openapi_spec_validator import validate

from service.openapi import examples
from tests.service.conftest import TASKS

EXAMPLES = examples()
FILE_ANSWERS = {"200", "206", "304", "307", "404", "409", "410", "416", "503"}
OPERATIONS = {
    ("post", "/generate"): {"202", "400", "413", "415", "422", "503"},
    ("get", "/jobs"): {"200", "404", "422", "503"},
    ("get", "/jobs/{job_id}"): {"200", "404", "503"},
    ("delete", "/jobs/{job_id}"): {"202", "204", "404", "503"},
    ("post", "/jobs/{job_id}/cancel"): {"200", "404", "409", "503"},
    ("get", "/jobs/{job_id}/video"): FILE_ANSWERS,
    ("get", "/jobs/{job_id}/thumbnail"): FILE_ANSWERS,
    ("get", "/jobs/{job_id}/events"): {"200", "404", "422", "503"},
    ("get", "/livez"): {"200"},
    ("get", "/readyz"): {"200", "503"},
    ("get", "/metrics"): {"200"},
}


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def test_the_document_is_valid(document):
    validate(document)


def test_every_route_and_every_answer_is_documented(document):
    found = {
        (method, path): set(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert found == OPERATIONS


def test_every_error_has_the_one_shape(document):
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}


def test_every_field_of_a_request_is_described(document):
    for name in ("GenerateRequest", "GenerateForm"):
        for field, schema in document["components"]["schemas"][name]["properties"].items():
            assert schema.get("description"), field


def test_there_is_an_example_for_every_task(client):
    tasks = {client.post("/generate", json=example["value"]).json()["task"] for example in EXAMPLES.values()}
    assert tasks == set(TASKS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_works_and_fits_its_schema(client, document, name):
    body = EXAMPLES[name]["value"]
    shown = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert shown[name]["value"] == body
    check(body, "GenerateRequest", document)
    answer = client.post("/generate", json=body)
    assert answer.status_code == 202, answer.text
    check(answer.json(), "JobView", document)


def test_a_finished_job_fits_its_schema(client, document, order, worker):
    job = order(refine=True, metadata={"a": "b"})
    worker.succeed(worker.claim())
    check(client.get(f"/jobs/{job['id']}").json(), "JobView", document)
    check(client.get("/jobs").json(), "JobPage", document)
    check(client.get("/jobs/nobody").json(), "ErrorAnswer", document)


def test_the_page_with_the_documentation_is_there(client):
    assert "/openapi.json" in client.get("/docs").text


def check(value, name, document):
    jsonschema.validate(value, {"$ref": f"#/components/schemas/{name}", "components": document["components"]})
