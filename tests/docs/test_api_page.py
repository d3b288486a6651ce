"""The page of the API names all that requests may have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

from jobs.order import PRIORITIES
from jobs.record import WEBHOOK_EVENTS
from service.app import create_app
from tests.docs.pages import DOCS
from tests.service.conftest import settings_for


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the OpenAPI document."""
    return create_app(settings_for("redis://127.0.0.1:1/0", tmp_path_factory.mktemp("service"))).openapi()


def missing(names: Iterable[str]) -> list[str]:
    """Return the names that `docs/api.md` does not have as code."""
    page = (DOCS / "api.md").read_text()
    return [name for name in names if not re.search(rf"[`\"]{name}[`\"]", page)]


def test_every_field_of_a_request_is_on_the_page(document):
    assert missing(document["components"]["schemas"]["GenerateRequest"]["properties"]) == []


def test_every_filter_of_jobs_is_on_the_page(document):
    parameters = document["paths"]["/jobs"]["get"]["parameters"]
    assert missing(each["name"] for each in parameters if each["in"] == "query") == []


def test_every_priority_and_event_of_webhooks_is_on_the_page():
    assert missing([*PRIORITIES, *WEBHOOK_EVENTS]) == []
