"""Requests generated from the OpenAPI schema get only documented responses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings

from jobs.registration import GroupRegistration
from service.jobs.waiting import MAX_WAIT_S
from tests.service.conftest import settings_for
from tests.service.openapi.test_schema import OPERATIONS

OF_A_JOB = ("job_id", "video_id")


@pytest.fixture(scope="module")
def settings(redis_server, tmp_path_factory):
    """Return settings that allow no connections to other hosts."""
    return settings_for(
        redis_server,
        tmp_path_factory.mktemp("fuzz"),
        fetch_private_hosts=False,
        fetch_connect_timeout_s=0.01,
        fetch_timeout_s=0.02,
    )


@pytest.fixture(scope="module")
def api(app, running):
    """Return the schema without files in forms: schemathesis cannot check invalid ones."""
    import schemathesis  # takes longer than to collect hundreds of tests

    async def started_app(scope, receive, send):
        """Let `running` start and stop the app: schemathesis would start it once more and never stop it."""
        if scope["type"] == "lifespan":
            for change in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{change}.complete"})
        else:
            await app(scope, receive, send)

    schema = schemathesis.openapi.from_asgi("/openapi.json", started_app)
    for part in schema.raw_schema["components"]["schemas"].values():
        for field in part.get("properties", {}).values():
            field["anyOf"] = [kind for kind in field.pop("anyOf", ()) if kind.get("format") != "binary"]
            if not field["anyOf"]:
                del field["anyOf"]
    return schema


@pytest.fixture(autouse=True)
def ready(client, redis):
    """Publish a capability as a worker does."""
    GroupRegistration(redis, "by hand").heartbeat("ready", ranks=1)


@pytest.fixture
def finished(client, order, worker):
    """Create a finished job and return its id."""

    def make():
        job = order()
        worker.succeed(worker.claim())
        return job["id"]

    return make


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
class TestEveryAnswerIsDocumented:
    def test_few_requests_of_the_schema(self, api, finished, method, path):
        ask(api[path][method], finished, max_examples=2)

    @pytest.mark.fuzz
    def test_many_requests_of_the_schema(self, api, finished, method, path):
        ask(api[path][method], finished, max_examples=300)


def can_be_invalid(operation):
    """Return whether the schema forbids any request. The strings in paths and headers may be anything."""
    definition = operation.definition.raw
    return "requestBody" in definition or any(
        parameter["in"] == "query" for parameter in definition.get("parameters", [])
    )


def ask(operation, finished, max_examples):
    """Send valid and invalid requests. Send those about a job also for an existing one."""
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

    not_promised = [positive_data_acceptance]  # the checkpoint restricts valid requests further
    # A form has no types: what is no list or number in JSON may be the text of one, and "" or null is absent.
    not_promised_of_form = [*not_promised, negative_data_rejection]
    modes = [GenerationMode.POSITIVE]
    if can_be_invalid(operation):  # else Hypothesis searches in vain for a second
        modes.append(GenerationMode.NEGATIVE)
    for mode in modes:

        @hypothesis_settings(
            max_examples=max_examples // 2,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            wait_s: Any = (case.query or {}).get("wait")
            if type(wait_s) in {int, float} and 0 < wait_s <= MAX_WAIT_S:
                case.query["wait"] = 0  # no job ends, and schemathesis waits ten seconds at most
            is_form = case.media_type == "multipart/form-data"
            excluded = not_promised_of_form if is_form else not_promised
            case.call_and_validate(excluded_checks=excluded)
            for name in {*OF_A_JOB} & {*(case.path_parameters or ())}:
                case.path_parameters[name] = finished()
                case.call_and_validate(excluded_checks=excluded)

        send()
