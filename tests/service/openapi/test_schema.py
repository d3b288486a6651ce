"""The OpenAPI document describes what the service really accepts and answers."""

from __future__ import annotations

import re

import jsonschema  # type: ignore[import-untyped]
import pytest
from openapi_spec_validator import validate

from service.openapi.schema import examples
from tests.service.conftest import TASKS

EXAMPLES = examples()
WHICH = ("Generate", "Retry", "Video", "Extension")
GATED = {"401", "422", "429"}
GATED_OPENAI = {"400", "401", "429"}
CREATED = {"400", "403", "408", "409", "413", "415", "422", "503"}
FILE_ANSWERS = {"200", "206", "304", "307", "404", "409", "410", "412", "416", "503"}
OPERATIONS = {
    ("post", "/generate"): {"200", "202"} | CREATED | GATED,
    ("get", "/capability"): {"200", "503"} | GATED,
    ("get", "/usage"): {"200", "503"} | GATED,
    ("get", "/presets"): {"200", "503"} | GATED,
    ("put", "/presets/{name}"): {"200", "400", "408", "409", "413", "415", "503"} | GATED,
    ("delete", "/presets/{name}"): {"204", "404", "503"} | GATED,
    ("get", "/jobs"): {"200", "404", "503"} | GATED,
    ("get", "/jobs/{job_id}"): {"200", "404", "503"} | GATED,
    ("delete", "/jobs/{job_id}"): {"202", "204", "404", "503"} | GATED,
    ("post", "/jobs/{job_id}/cancel"): {"200", "404", "409", "503"} | GATED,
    ("post", "/batches/{batch_id}/cancel"): {"200", "404", "503"} | GATED,
    ("post", "/jobs/{job_id}/retry"): {"200", "202", "404"} | CREATED | GATED,
    ("get", "/jobs/{job_id}/video"): FILE_ANSWERS | GATED,
    ("get", "/jobs/{job_id}/thumbnail"): FILE_ANSWERS | GATED,
    ("get", "/jobs/{job_id}/timeline"): FILE_ANSWERS | GATED,
    ("get", "/jobs/{job_id}/events"): {"200", "404", "503"} | GATED,
    ("get", "/events"): {"200", "404", "503"} | GATED,
    ("get", "/jobs/{job_id}/webhooks"): {"200", "404", "503"} | GATED,
    ("post", "/v1/videos"): {"200"} | (CREATED - {"409"}) | GATED_OPENAI,
    ("get", "/v1/videos"): {"200", "400", "404", "503"} | GATED_OPENAI,
    ("post", "/v1/videos/extensions"): {"200", "404", "409", "410"} | CREATED | GATED_OPENAI,
    ("get", "/v1/videos/{video_id}"): {"200", "404", "503"} | GATED_OPENAI,
    ("delete", "/v1/videos/{video_id}"): {"200", "404", "503"} | GATED_OPENAI,
    ("get", "/v1/videos/{video_id}/content"): {"400"} | FILE_ANSWERS | GATED_OPENAI,
    ("get", "/v1/models"): {"200", "503"} | GATED_OPENAI,
    ("get", "/v1/models/{model}"): {"200", "404", "503"} | GATED_OPENAI,
    ("get", "/livez"): {"200", "422"},
    ("get", "/readyz"): {"200", "422", "503"},
    ("get", "/metrics"): {"200", "422"},
}


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def test_document_is_valid(document):
    validate(document)


def test_every_route_and_status_is_documented(document):
    found = {
        (method, path): set(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert found == OPERATIONS


def test_every_error_has_the_same_shape(document):
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/json"]["schema"]
                    shape = "OpenAIErrorAnswer" if path.startswith("/v1/") else "ErrorAnswer"
                    assert schema == {"$ref": f"#/components/schemas/{shape}"}


def test_every_field_of_a_request_is_described(document):
    for name in (f"{which}{kind}" for which in WHICH for kind in ("Request", "Form")):
        for field, schema in document["components"]["schemas"][name]["properties"].items():
            assert schema.get("description"), field


def test_every_task_has_an_example(client):
    tasks = {client.post("/generate", json=example["value"]).json()["task"] for example in EXAMPLES.values()}
    assert tasks == set(TASKS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_work_and_match_their_schema(client, document, name):
    body = EXAMPLES[name]["value"]
    shown = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert shown[name]["value"] == body
    check(body, "GenerateRequest", document)
    answer = client.post("/generate", json=body)
    assert answer.status_code == 202, answer.text
    check(answer.json(), "JobView", document)


def test_finished_job_matches_its_schema(client, document, order, worker):
    job = order(refine=True, metadata={"a": "b"})
    worker.succeed(worker.claim())
    check(client.get(f"/jobs/{job['id']}").json(), "JobView", document)
    check(client.get("/jobs").json(), "JobPage", document)
    check(client.get("/jobs/nobody").json(), "ErrorAnswer", document)


class TestDocsPage:
    def test_loads_no_assets_from_other_hosts(self, client):
        page = client.get("/docs")
        assert "/openapi.json" in page.text
        parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(parts) == 3
        for part in parts:
            assert part.startswith("/docs/")
            answer = client.get(part)
            assert answer.status_code == 200
            assert answer.content
        assert "https://" not in page.text
        assert '"validatorUrl": null' in page.text

    def test_forbids_other_hosts(self, client):
        policy = client.get("/docs").headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'")
        assert "http" not in policy

    def test_serves_no_other_files(self, client):
        assert client.get("/docs/redoc.standalone.js").status_code == 422
        assert client.get("/docs/../../secrets").status_code == 404


@pytest.mark.parametrize("field", ["prompt", "seconds", "size", "seed"])
def test_openai_video_matches_its_schema(client, document, field):
    body = {"prompt": "a red ball", "seconds": "4", "size": "96x64", "seed": 7}
    check(body, "VideoRequest", document)
    check(client.post("/v1/videos", json=body).json(), "Video", document)
    check(client.get("/v1/videos").json(), "VideoPage", document)
    wrong = client.post("/v1/videos", json=body | {field: []})
    assert wrong.status_code == 400
    check(wrong.json(), "OpenAIErrorAnswer", document)


IMAGE = {"url": "https://example.com/cat.png"}
JOB = {"job": "4d3bd841b66e4a4985671dca5e31a593"}


class TestNeededFields:
    """The document states which fields a request needs, by rules that generators of clients ignore."""

    @pytest.mark.parametrize(
        "body",
        [
            {"prompt": "a"},
            {"prompts": ["a", "b"]},
            {"prompt": "a", "prompts": None, "task": None},
            {"prompt": "a", "task": "text_to_video"},
            {"prompt": "a", "task": "image_to_video", "image": IMAGE},
            {"prompt": "a", "task": "image_to_video", "image": {**JOB, "frame": 0}},
            {"prompt": "a", "task": "refine", "video": JOB},
        ],
    )
    def test_request_with_all_of_them_is_valid(self, document, body):
        check(body, "GenerateRequest", document)

    @pytest.mark.parametrize(
        ("body", "missing"),
        [
            ({}, "'prompt' is a required property"),
            ({"prompt": None}, "None should not be valid"),
            ({"prompt": "a", "prompts": ["b"]}, "'a' is not of type 'null'"),
            ({"prompt": "a", "task": "image_to_video"}, "'image' is a required property"),
            ({"prompt": "a", "task": "image_to_video", "image": None}, "None should not be valid"),
            ({"prompt": "a", "task": "video_continuation"}, "'video' is a required property"),
            ({"prompt": "a", "task": "refine", "image": IMAGE}, "'video' is a required property"),
        ],
    )
    def test_request_without_one_is_invalid_as_the_service_says(self, client, document, body, missing):
        with pytest.raises(jsonschema.ValidationError, match=missing):
            check(body, "GenerateRequest", document)
        assert client.post("/generate", json=body).status_code == 422

    @pytest.mark.parametrize("kind", ["Source", "ImageSource"])
    def test_input_has_a_source(self, document, kind):
        check(JOB, kind, document)
        with pytest.raises(jsonschema.ValidationError):
            check({"width": 96}, kind, document)

    def test_form_may_have_inputs_in_parts(self, document):
        image_job = {"prompt": "a", "task": "image_to_video"}
        for given in ({"image": "(a file)"}, {"image[url]": IMAGE["url"]}, {"image[job]": JOB["job"]}):
            check(image_job | given, "GenerateForm", document)
        with pytest.raises(jsonschema.ValidationError):
            check(image_job, "GenerateForm", document)

    def test_retry_needs_nothing(self, document):
        check({}, "RetryRequest", document)
        check({"seed": None}, "RetryRequest", document)

    @pytest.mark.parametrize("name", ["RetryRequest", "RetryForm"])
    def test_retry_has_no_defaults_which_a_generated_client_would_send(self, document, name):
        properties = document["components"]["schemas"][name]["properties"]
        assert [field for field, schema in properties.items() if "default" in schema] == []

    def test_extension_needs_a_video(self, document):
        body = {"prompt": "a", "seconds": "4"}
        check(body | {"video": {"id": "x"}}, "ExtensionRequest", document)
        for video in ({}, {"video": None}):
            with pytest.raises(jsonschema.ValidationError):
                check(body | video, "ExtensionRequest", document)
        check(body | {"video[id]": "x"}, "ExtensionForm", document)
        with pytest.raises(jsonschema.ValidationError):
            check(body, "ExtensionForm", document)

    def test_bodies_are_plain_objects_for_generators(self, document):
        for name, schema in document["components"]["schemas"].items():
            if name.endswith(("Request", "Form", "Source")):
                assert schema["type"] == "object"
                assert not schema.keys() & {"allOf", "anyOf", "oneOf"}, name


def check(value, name, document):
    jsonschema.validate(value, {"$ref": f"#/components/schemas/{name}", "components": document["components"]})
